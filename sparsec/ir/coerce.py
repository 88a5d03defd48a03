"""Attribute values as people write them -> as nodes keep them. A value of the wrong form is a ``DeclarationError``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from sparsec.ir.node import Node, Value
from sparsec.ir.predicates import CHUNK, TOKEN
from sparsec.ir.rules_select import Problem
from sparsec.ir.schema import MAPPED, Attr, Required
from sparsec.ir.suggest import did_you_mean
from sparsec.scalar.expr import Expr, constant
from sparsec.scalar.fn import Fn
from sparsec.scalar.walk import postorder, variables

Captures = Mapping[str, Node]  # captured tensors by the name that expressions use


class Refused(Exception):
    """A value of the wrong form; ``make`` adds the node and the place."""

    def __init__(self, value: object, rule: str, fix: str, offset: int = 0) -> None:
        self.problem, self.offset = Problem(str(value), rule, fix), offset


def coerce(attr: Attr, value: object, captures: Captures, size: object) -> Value:
    """One attribute's value in its stored form; ``size`` is the tokens per unit that named predicates use."""
    if value is None and attr.optional:
        return None
    if attr.form in ("number", "predicate", "dim"):
        return _expression(attr, value, captures, size)
    return _LITERALS[attr.form](attr, value)


def _choice(attr: Attr, value: object) -> Value:
    if value in attr.choices:
        return str(value)
    raise Refused(value, f"it is one of {', '.join(attr.choices)}", did_you_mean(str(value), attr.choices))


def _int(attr: Attr, value: object) -> Value:
    number = value.value if isinstance(value, Expr) and value.head == "const" else value
    if not isinstance(number, int) or isinstance(number, bool):
        raise Refused(value, "it is a whole number that the declaration fixes", f"{int(attr.least or 1)} or more")
    return _at_least(attr, number)


def _float(attr: Attr, value: object) -> Value:
    number = value.value if isinstance(value, Expr) and value.head == "const" else value
    if not isinstance(number, int | float) or isinstance(number, bool) or not math.isfinite(number):
        raise Refused(value, "it is a finite number", "such as 30.0")
    return _at_least(attr, float(number))


def _at_least(attr: Attr, number: int | float) -> int | float:
    if attr.least is not None and number < attr.least:
        raise Refused(number, f"it must be at least {attr.least:g}", f"{attr.least:g} or more")
    return number


def _flag(attr: Attr, value: object) -> Value:
    if isinstance(value, bool):
        return value
    raise Refused(value, "it is true or false", "true or false")


def _name(attr: Attr, value: object) -> Value:
    if isinstance(value, str) and value.isidentifier():
        return value
    raise Refused(value, "it is a name", "letters, digits and _")


def _shape(attr: Attr, value: object) -> Value:
    assert isinstance(value, tuple) and all(isinstance(dim, Expr) for dim in value), value
    return value


_LITERALS: Mapping[str, Callable[[Attr, object], Value]] = {
    "choice": _choice,
    "int": _int,
    "float": _float,
    "flag": _flag,
    "name": _name,
    "shape": _shape,
}


def _expression(attr: Attr, value: object, captures: Captures, size: object) -> Expr:
    """An expression from an ``Expr``, a number, text, a named predicate, or a Python function that is traced."""
    found = _read(attr, value, captures, size)
    if attr.form == "predicate" and found.kind != "bool":
        raise Refused(found, "a predicate is true or false", _predicate_fix(attr, value))
    if attr.form != "predicate" and found.kind == "bool":
        raise Refused(found, "it is a number", "choose between numbers by where(condition, a, b)")
    _names_are_known(attr, found, captures)
    return found


def _read(attr: Attr, value: object, captures: Captures, size: object) -> Expr:
    if isinstance(value, Expr):
        return value
    if isinstance(value, int | float):
        return constant(value)
    if isinstance(value, str):
        named = _named(attr, value, size)
        return _parsed(value, captures) if named is None else named
    if callable(value):
        return _traced(attr, value, captures)
    raise Refused(value, "it is an expression", "write it as text, a lambda or an Expr")


def _predicate_fix(attr: Attr, value: object) -> str:
    """Names of predicates where one name was written."""
    fix = "compare with <, <=, == or combine with &, |, ~"
    if not isinstance(value, str) or not value.strip().isidentifier():
        return fix
    names = [*(CHUNK if "c" in attr.index else ()), *(TOKEN if "j" in attr.index else ())]
    return f"choose one of {', '.join(names)}, or {fix}" if names else fix


def _named(attr: Attr, text: str, size: object) -> Expr | None:
    tokens = size.value if isinstance(size, Expr) else size
    if text in CHUNK and "c" in attr.index and isinstance(tokens, int):
        return CHUNK[text](tokens)
    return TOKEN[text]() if text in TOKEN and "j" in attr.index else None


def _parsed(text: str, captures: Captures) -> Expr:
    from sparsec.scalar.text import ExprSyntaxError, parse

    try:
        return parse(text, None, {name: node.element_kind for name, node in captures.items()})
    except ExprSyntaxError as error:
        unknown = error.rule == "unknown tensor"
        fix = _capture_fix(error.piece, captures) if unknown else error.fix
        raise Refused(error.piece, error.rule, fix, error.column - 1) from error


def _capture_fix(name: str, captures: Captures) -> str:
    return did_you_mean(name, captures) if captures else f"add the keyword {name}=<tensor> to this node"


def _traced(attr: Attr, value: Callable[..., object], captures: Captures) -> Expr:
    from sparsec.scalar.trace import TraceError, trace

    try:
        return trace(value, attr.index, captures)
    except TraceError as error:
        index = ", ".join(attr.index)
        raise Refused(f"a function of {index}", str(error), error.fix or f"a function of some of {index}") from error


INDEX = frozenset({"b", "h", "i", "j", "c", "score"}) | MAPPED.keys()


def _names_are_known(attr: Attr, found: Expr, captures: Captures) -> None:
    """Index variables that mean something here, elements of tensors that are captured, no divisor 0."""
    for name in variables(found):
        if name in INDEX and name not in attr.index:
            may = ", ".join(attr.index) or "only dims"
            raise Refused(found, f"`{name}` means nothing here", f"it may use {may} and dims")
    for part in postorder(found):
        if part.head == "element":
            _element_is_there(part, str(part.value), captures)
    divides(found)


def divides(found: Expr) -> None:
    """Refuses // and % by a constant 0."""
    for part in postorder(found):
        if part.head in (Fn.FLOORDIV, Fn.MOD) and part.args[1].head == "const" and not part.args[1].value:
            raise Refused(part, "the divisor is 0", "divide by another number")


def _element_is_there(part: Expr, name: str, captures: Captures) -> None:
    if name not in captures:
        raise Refused(part, f"`{name}` is not captured by this node", _capture_fix(name, captures))
    dims = captures[name].shape
    if len(part.args) != len(dims):
        fix = f"{name}[{', '.join('bhij'[: len(dims)])}], or as it is meant"
        raise Refused(part, f"`{name}` has {len(dims)} dims: every one needs an index", fix)


def missing(default: object) -> bool:
    """Whether an attribute has no default."""
    return isinstance(default, Required)
