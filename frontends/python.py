"""Python front end: a decorated function is run once on its inputs, and what it returns is the variant."""

from __future__ import annotations
import __future__

import ast
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_args, get_origin, overload

from sparsec.ir import build
from sparsec.ir.error import DeclarationError
from sparsec.ir.node import Node
from sparsec.ir.origin import Origin, stated
from sparsec.ir.variant import Variant
from sparsec.ir.variant import variant as make_variant

Body = Callable[..., Node | Sequence[Node]]


@overload
def variant(body: Body, /) -> Variant: ...


@overload
def variant(body: None = None, /, *, name: str | None = None, **knobs: object) -> Callable[[Body], Variant]: ...


def variant(
    body: Body | None = None, /, *, name: str | None = None, **knobs: object
) -> Variant | Callable[[Body], Variant]:
    """Turns a function into a variant. Each parameter without a default is an input, annotated with its shape as text::

        @sparsec.variant
        def local(q: "B TQ H D", k: "B TK HKV D", v: "B TK HKV DV", *, window: int = 512):
            memory = lang.tokens(k, v)
            return lang.attend(q, memory, lang.mask(memory, where=lambda i, j: (j <= i) & (i - j < window)))

    A dtype may end the text ("B TQ HKV 8 int32"); ``Annotated[Node, "B TQ H D"]`` says the same to a type checker.
    Parameters with a default are knobs; ``@sparsec.variant(window=64)`` sets them.

    Raises:
        DeclarationError: a parameter that is neither input nor knob, and whatever the constructors raise.
    """
    if body is None:
        return lambda function: _declare(function, name, knobs)
    return _declare(body, name, knobs)


def _declare(body: Body, name: str | None, knobs: dict[str, object]) -> Variant:
    origin = Origin(body.__code__.co_filename, body.__code__.co_firstlineno)
    inputs: dict[str, Node] = {}
    settings: dict[str, object] = {}
    for parameter in inspect.signature(body).parameters.values():
        if parameter.default is not parameter.empty:
            settings[parameter.name] = knobs.pop(parameter.name, parameter.default)
            continue
        with stated(Origin(origin.file, origin.line, name=parameter.name)):
            inputs[parameter.name] = build.input(parameter.name, _shape(parameter, _is_text(body), origin))
    if knobs:
        from sparsec.ir.suggest import did_you_mean

        wrong = next(iter(knobs))
        fix = did_you_mean(wrong, settings)
        raise DeclarationError(f"variant {body.__name__}", wrong, "it has no such knob", fix, origin)
    outputs = body(**inputs, **settings)
    with stated(origin):
        return make_variant(name or body.__name__, outputs, list(inputs.values()), settings)


def _is_text(body: Body) -> bool:
    """Whether the function's annotations are kept as source text."""
    return bool(body.__code__.co_flags & __future__.annotations.compiler_flag)


def _shape(parameter: inspect.Parameter, is_text: bool, origin: Origin) -> str:
    """The text of an annotation, by itself or inside Annotated."""
    found: Any = parameter.annotation
    if is_text and isinstance(found, str):
        strings = [node.value for node in ast.walk(ast.parse(found)) if isinstance(node, ast.Constant)]
        found = next((value for value in strings if isinstance(value, str)), None)
    if get_origin(found) is Annotated:
        found = next((item for item in get_args(found)[1:] if isinstance(item, str)), None)
    if not isinstance(found, str):
        fix = f'{parameter.name}: "B TQ H D", or a default to make it a knob'
        raise DeclarationError(
            f"input {parameter.name}", "no shape", "an input is annotated with its shape", fix, origin
        )
    return found
