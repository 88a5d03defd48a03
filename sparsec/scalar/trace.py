"""Python functions traced into expressions; tensors that they capture become elements of named tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from sparsec.scalar.closure import Captured, rebind
from sparsec.scalar.expr import _TRACING, Expr, Kind, lift, var


class TraceError(TypeError):
    """A function that cannot be traced into an expression; ``fix`` is what to write instead, where that is known."""

    def __init__(self, said: str, fix: str | None = None) -> None:
        super().__init__(said)
        self.fix = fix


def trace(
    fn: Callable[..., Any],
    variables: Mapping[str, Kind],
    captures: Mapping[str, Any] | None = None,
    kind: Kind | None = None,
) -> Expr:
    """The expression that a function computes of its variables.

    Parameters named like variables get those, in any number and order; otherwise there is one per variable, in order.

    Args:
        captures: tensors that the function reads from its closure or module, by the name they get: the tensor itself,
            or the kind of its elements where the function knows it by that same name. See ``closure.captured_tensors``.
        kind: what the result must be, such as "bool" for a mask.

    Raises:
        TraceError: parameters that fit no variable, a truth value asked of an expression, a result of another kind.
    """
    name = getattr(fn, "__name__", "function")
    call = rebind(fn, captures or {})
    arguments = _arguments(fn, name, variables, captures or {})
    token = _TRACING.set(name)
    try:
        result = call(*arguments)
    except (TypeError, ZeroDivisionError) as error:
        raise TraceError(f"`{name}`{_place(fn)}: {error}", getattr(error, "fix", None)) from error
    except AttributeError as error:
        if not isinstance(error.obj, Expr):
            raise
        raise _no_method(f"`{name}`{_place(fn)}", str(error.name)) from error
    finally:
        _TRACING.reset(token)
    return _checked(result, name, kind)


def _arguments(
    fn: Callable[..., Any], name: str, variables: Mapping[str, Kind], captures: Mapping[str, Any]
) -> list[Expr]:
    """One variable per positional parameter without a default."""
    try:
        signature = inspect.signature(fn)
    except ValueError:  # functions that are not written in Python, such as torch.tanh, do not say what they take
        return [var(n, kind) for n, kind in variables.items()]
    listed = [p for p in signature.parameters.values() if p.default is p.empty]
    names = [p.name for p in listed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(names) != len(listed):
        raise TraceError(f"`{name}` takes *args or keywords: give it plain parameters out of {', '.join(variables)}")
    if all(n in variables for n in names):
        return [var(n, variables[n]) for n in names]
    if len(names) == len(variables):
        return [var(n, kind) for n, kind in variables.items()]
    unknown = next(n for n in names if n not in variables)
    said = f"`{name}` takes {len(names)} parameters, not {len(variables)}, and `{unknown}` is not a known name"
    listing = ", ".join(variables)
    if unknown in captures:
        fix = f"`{unknown}` is no parameter: close over it, `lambda h: {unknown}[h]`, and keep {unknown}={unknown}"
        raise TraceError(said, fix)
    raise TraceError(said, f"{len(variables)} parameters of any names for {listing}, or some of these by their names")


def _no_method(where: str, method: str) -> TraceError:
    """Functions of expressions are no methods."""
    from sparsec.scalar import functions
    from sparsec.scalar.composed import COMPOSED

    known = [f"lang.{method}(x)"] if hasattr(functions, method) or method in COMPOSED else []
    known += [f"torch.{method}(x)"] if method in functions.NAMED else []
    return TraceError(f"{where}: an expression has no method `{method}`", " or ".join(known) or None)


def _place(fn: Callable[..., Any]) -> str:
    code = getattr(fn, "__code__", None)
    return f" ({code.co_filename}:{code.co_firstlineno})" if code else ""


def _checked(result: Any, name: str, kind: Kind | None) -> Expr:
    if isinstance(result, Captured):
        raise TraceError(f"`{name}` returns the whole tensor `{result.name}`: index it, {result.name}[i]")
    if not isinstance(result, Expr | int | float):
        raise TraceError(
            f"`{name}` returns {result!r}: return an expression of its parameters (did it forget `return`?)"
        )
    expr = lift(result)
    if kind == "float" and expr.kind == "int":
        return expr
    if kind is not None and expr.kind != kind:
        fix = f"write `{expr} != 0`" if kind == "bool" else "use where(condition, then, otherwise)"
        raise TraceError(f"`{name}` returns `{expr}`, which is {expr.kind}, not {kind}: {fix}")
    return expr
