"""The bridge to sympy, for formulas (FLOPs, bytes, tile counts) and proofs; sympy loads on first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

from sparsec.scalar.expr import Expr, call, constant, element, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.walk import transform

INDICES = frozenset({"b", "h", "i", "j", "c"})


class NoFormula(ValueError):
    """An expression with no counterpart on the other side of the bridge."""


def to_sympy(expr: Expr) -> Any:
    """The sympy expression: dims as positive integers, indices as non-negative ones, elements as function values.

    Raises:
        NoFormula: bitwise functions of integers.
    """
    return transform(expr, _to_sympy)


def formula(expr: Expr | Any, values: Mapping[str, int | float] | None = None) -> Any:
    """A formula with values put in: a number once none is missing, else what is left as a sympy expression."""
    import sympy

    symbolic = to_sympy(expr) if isinstance(expr, Expr) else sympy.sympify(expr)
    given = {symbol: values[symbol.name] for symbol in symbolic.free_symbols if values and symbol.name in values}
    result = symbolic.subs(given)
    if not result.is_number:
        return result
    return int(result) if result.is_integer else float(result)


def from_sympy(formula: Any) -> Expr:
    """The expression of a sympy formula; symbols become integers unless they are not known to be.

    Raises:
        NoFormula: a sympy function that expressions do not have.
    """
    name = type(formula).__name__
    if formula.is_Integer:
        return constant(int(formula))
    if formula.is_Rational:
        return constant(int(formula.p)) / int(formula.q)
    if formula.is_Symbol:
        return var(formula.name, "int" if formula.is_integer else "float")
    if formula.is_number and not formula.args:
        return constant(float(formula))
    if name == "floor":
        return _floor(formula.args[0])
    if name == "ceiling":
        return -_floor(-formula.args[0])
    if name == "Pow":
        return _power(*formula.args)
    if name in FROM_SYMPY:
        found: Expr = FROM_SYMPY[name](*(from_sympy(a) for a in formula.args))
        return found
    if formula.is_Function and name == str(formula.func) and formula.func.__module__ is None:
        return element(name, *(from_sympy(a) for a in formula.args), kind="int" if formula.is_integer else "float")
    raise NoFormula(f"`{formula}`: expressions have no `{name}`; rewrite it with floor, Mod, Min, Max, exp or log")


def _floor(inside: Any) -> Expr:
    numerator, denominator = inside.together().as_numer_denom()
    return from_sympy(numerator.expand()) // from_sympy(denominator)


def _power(base: Any, exponent: Any) -> Expr:
    if exponent.is_number:
        return from_sympy(base) ** (int(exponent) if exponent.is_Integer else float(exponent))
    if base == 2:
        return call(Fn.EXP2, from_sympy(exponent))
    raise NoFormula(f"`{base}**{exponent}`: a power is a number; rewrite it with exp and log")


def _fold(fn: Fn) -> Callable[..., Expr]:
    return lambda *args: reduce(lambda a, b: call(fn, a, b), args)


def _one(fn: Fn) -> Callable[..., Expr]:
    return lambda a: call(fn, a)


def _swapped(fn: Fn) -> Callable[..., Expr]:
    return lambda a, b: call(fn, b, a)


def _piecewise(*pairs: tuple[Expr, Expr]) -> Expr:
    *cases, (result, _) = pairs
    for value, condition in reversed(cases):
        result = call(Fn.WHERE, condition, value, result)
    return result


FROM_SYMPY: dict[str, Callable[..., Any]] = {
    "Add": _fold(Fn.ADD), "Mul": _fold(Fn.MUL), "Mod": _fold(Fn.MOD), "Min": _fold(Fn.MINIMUM),
    "Max": _fold(Fn.MAXIMUM), "Abs": _one(Fn.ABS), "exp": _one(Fn.EXP), "log": _one(Fn.LOG), "tanh": _one(Fn.TANH),
    "And": _fold(Fn.AND), "Or": _fold(Fn.OR), "Not": _one(Fn.NOT),
    "StrictLessThan": _fold(Fn.LT), "LessThan": _fold(Fn.LE), "StrictGreaterThan": _swapped(Fn.LT),
    "GreaterThan": _swapped(Fn.LE), "Equality": _fold(Fn.EQ), "Unequality": _fold(Fn.NE),
    "BooleanTrue": lambda: constant(True), "BooleanFalse": lambda: constant(False),
    "ExprCondPair": lambda value, condition: (value, condition), "Piecewise": _piecewise,
}  # fmt: skip


def _symbol(x: Expr) -> Any:
    import sympy

    name = str(x.value)
    if x.kind == "int":
        return sympy.Symbol(name, integer=True, **({"nonnegative": True} if name in INDICES else {"positive": True}))
    return sympy.Symbol(name, real=True)


def _to_sympy(x: Expr, args: tuple[Any, ...]) -> Any:
    import sympy

    if x.head == "const":
        return sympy.sympify(x.value)
    if x.head == "var":
        return _symbol(x)
    if x.head == "element":
        return sympy.Function(str(x.value), integer=x.kind == "int" or None, real=True)(*args)
    assert isinstance(x.head, Fn)
    bitwise = x.head in (Fn.AND, Fn.OR) and x.kind == "int"
    if bitwise or x.head not in TO_SYMPY:
        raise NoFormula(f"`{x}`: no formula for bits; keep bitwise functions out of sizes and costs")
    return TO_SYMPY[x.head](sympy, *args)


TO_SYMPY: dict[Fn, Callable[..., Any]] = {
    Fn.ADD: lambda s, a, b: a + b,
    Fn.SUB: lambda s, a, b: a - b,
    Fn.MUL: lambda s, a, b: a * b,
    Fn.DIV: lambda s, a, b: a / b,
    Fn.FLOORDIV: lambda s, a, b: s.floor(a / b),
    Fn.MOD: lambda s, a, b: s.Mod(a, b),
    Fn.NEG: lambda s, a: -a,
    Fn.ABS: lambda s, a: s.Abs(a),
    Fn.MINIMUM: lambda s, a, b: s.Min(a, b),
    Fn.MAXIMUM: lambda s, a, b: s.Max(a, b),
    Fn.EXP: lambda s, a: s.exp(a),
    Fn.EXP2: lambda s, a: 2**a,
    Fn.LOG: lambda s, a: s.log(a),
    Fn.LOG2: lambda s, a: s.log(a) / s.log(2),
    Fn.SQRT: lambda s, a: s.sqrt(a),
    Fn.RSQRT: lambda s, a: 1 / s.sqrt(a),
    Fn.TANH: lambda s, a: s.tanh(a),
    Fn.SIGMOID: lambda s, a: 1 / (1 + s.exp(-a)),
    Fn.LT: lambda s, a, b: s.Lt(a, b),
    Fn.LE: lambda s, a, b: s.Le(a, b),
    Fn.EQ: lambda s, a, b: s.Eq(a, b),
    Fn.NE: lambda s, a, b: s.Ne(a, b),
    Fn.AND: lambda s, a, b: s.And(a, b),
    Fn.OR: lambda s, a, b: s.Or(a, b),
    Fn.NOT: lambda s, a: s.Not(a),
    Fn.WHERE: lambda s, c, a, b: s.Piecewise((a, c), (b, True)),
    Fn.SHL: lambda s, a, b: a * 2**b,
    Fn.SHR: lambda s, a, b: s.floor(a / 2**b),
}
