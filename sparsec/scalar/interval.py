"""Three-valued evaluation of predicates over boxes of integer variables: holds everywhere, nowhere, or undecided."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from sparsec.scalar.expr import Expr
from sparsec.scalar.fn import Fn
from sparsec.scalar.polynomial import expression, polynomial
from sparsec.scalar.ranges import Range, fits_int32, range_of
from sparsec.scalar.walk import transform

__all__ = ["Range", "Truth", "decide", "fits_int32", "range_of"]


class Truth(Enum):
    """What is known of a predicate over a box; MIXED where it holds at some points only, or is not decided."""

    ALL = "all"
    NONE = "none"
    MIXED = "mixed"


def decide(predicate: Expr, env: Mapping[str, Range]) -> Truth:
    """The truth of a predicate over every point of a box.

    Exact for one linear comparison such as ``i - j < 512`` whose coefficients divide its range; sound for the rest:
    ALL and NONE are proved, MIXED promises nothing.

    Args:
        env: the ranges of integer variables and of captured tensors, by name; what is missing can be any integer.
    """

    def rule(x: Expr, args: tuple[Truth, ...]) -> Truth:
        if x.kind != "bool":
            return Truth.MIXED  # a number: its comparison reads it
        if x.head == "const":
            return Truth.ALL if x.value else Truth.NONE
        if x.head is Fn.NOT:
            return _OPPOSITE[args[0]]
        if x.head in (Fn.AND, Fn.OR):
            absorbing = Truth.NONE if x.head is Fn.AND else Truth.ALL
            return absorbing if absorbing in args else args[0] if args[0] is args[1] else Truth.MIXED
        if x.head in (Fn.LT, Fn.LE, Fn.EQ, Fn.NE) and all(a.kind == "int" for a in x.args):
            return _compared(x, env)
        return Truth.MIXED

    return transform(predicate, rule)


def _compared(x: Expr, env: Mapping[str, Range]) -> Truth:
    left, right = x.args
    terms = polynomial(left - right)
    offset = terms.pop((), 0)
    rest = range_of(expression(terms), env)
    lo, hi = rest.lo + offset, rest.hi + offset
    if x.head in (Fn.LT, Fn.LE):
        limit = -1 if x.head is Fn.LT else 0
        return Truth.ALL if hi <= limit else Truth.NONE if lo > limit else Truth.MIXED
    equal = _is_zero(lo, hi, offset, rest.multiple_of)
    return equal if x.head is Fn.EQ else _OPPOSITE[equal]


def _is_zero(lo: float, hi: float, offset: int, step: int) -> Truth:
    if lo == hi == 0:
        return Truth.ALL
    possible = lo <= 0 <= hi and (offset % step == 0 if step else offset == 0)
    return Truth.MIXED if possible else Truth.NONE


_OPPOSITE = {Truth.ALL: Truth.NONE, Truth.NONE: Truth.ALL, Truth.MIXED: Truth.MIXED}
