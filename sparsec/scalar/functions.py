"""The scalar functions to use inside traced functions; each takes expressions and numbers and gives an expression."""

from __future__ import annotations

from collections.abc import Callable

from sparsec.scalar.expr import Expr, ExprLike, call
from sparsec.scalar.fn import Fn


def exp(x: ExprLike) -> Expr:
    """e ** x."""
    return call(Fn.EXP, x)


def exp2(x: ExprLike) -> Expr:
    """2 ** x."""
    return call(Fn.EXP2, x)


def log(x: ExprLike) -> Expr:
    """The natural logarithm; log(0) is -inf."""
    return call(Fn.LOG, x)


def log2(x: ExprLike) -> Expr:
    """The binary logarithm."""
    return call(Fn.LOG2, x)


def sqrt(x: ExprLike) -> Expr:
    """The square root."""
    return call(Fn.SQRT, x)


def rsqrt(x: ExprLike) -> Expr:
    """1 / sqrt(x)."""
    return call(Fn.RSQRT, x)


def tanh(x: ExprLike) -> Expr:
    """The hyperbolic tangent."""
    return call(Fn.TANH, x)


def sigmoid(x: ExprLike) -> Expr:
    """1 / (1 + exp(-x))."""
    return call(Fn.SIGMOID, x)


def absolute(x: ExprLike) -> Expr:
    """|x|; Python's ``abs`` works too."""
    return call(Fn.ABS, x)


def minimum(a: ExprLike, b: ExprLike) -> Expr:
    """The smaller one; NaN if either is."""
    return call(Fn.MINIMUM, a, b)


def maximum(a: ExprLike, b: ExprLike) -> Expr:
    """The larger one; NaN if either is."""
    return call(Fn.MAXIMUM, a, b)


def where(condition: ExprLike, then: ExprLike, otherwise: ExprLike) -> Expr:
    """``then`` where the boolean condition holds, else ``otherwise``."""
    return call(Fn.WHERE, condition, then, otherwise)


_RANKS = (Fn.RANK, Fn.RANK_ID, Fn.RANK_SCORE)
NAMED: dict[str, Fn] = {
    **{fn.value: fn for fn in Fn if fn not in _RANKS},
    "min": Fn.MINIMUM,
    "max": Fn.MAXIMUM,
    "absolute": Fn.ABS,
    "subtract": Fn.SUB,
    "multiply": Fn.MUL,
    "true_divide": Fn.DIV,
    "divide": Fn.DIV,
    "floor_divide": Fn.FLOORDIV,
    "remainder": Fn.MOD,
    "negative": Fn.NEG,
    "less": Fn.LT,
    "less_equal": Fn.LE,
    "logical_and": Fn.AND,
    "logical_or": Fn.OR,
    "logical_not": Fn.NOT,
    "logical_xor": Fn.XOR,
    "bitwise_and": Fn.AND,
    "bitwise_or": Fn.OR,
    "bitwise_not": Fn.NOT,
    "bitwise_xor": Fn.XOR,
}
_SWAPPED = {"gt": Fn.LT, "greater": Fn.LT, "ge": Fn.LE, "greater_equal": Fn.LE}


def named(name: str) -> Callable[..., Expr]:
    """The function of a name as torch or numpy spells it.

    Raises:
        TypeError: a name that is no scalar function.
    """
    from sparsec.scalar.composed import COMPOSED

    if name in COMPOSED:
        return lambda x, inplace=False: COMPOSED[name](x)  # torch's own activations hand on that they are not in place
    if name in _SWAPPED:
        return lambda a, b: call(_SWAPPED[name], b, a)
    if name == "__getitem__":
        raise TypeError(
            "a torch tensor is no part of a declaration: make it an input, and give it to the op by keyword"
        )
    if name not in NAMED:
        known = ", ".join(sorted({fn.value for fn in Fn} | COMPOSED.keys()))
        raise TypeError(f"`{name}` is no scalar function that can be traced; there are {known}")
    return lambda *args: call(NAMED[name], *args)
