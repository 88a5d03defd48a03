"""Folding of booleans; equality, exclusive or and choice of booleans become and, or and not."""

from __future__ import annotations

from collections.abc import Callable

from sparsec.scalar.expr import Expr, constant, raw
from sparsec.scalar.fn import Fn

Rule = Callable[..., Expr | None]


def _and(a: Expr, b: Expr) -> Expr | None:
    for x, y in ((a, b), (b, a)):
        if x.head == "const":
            return y if x.value else x
    if a is b:
        return a
    return constant(False) if ~a is b else None


def _or(a: Expr, b: Expr) -> Expr | None:
    for x, y in ((a, b), (b, a)):
        if x.head == "const":
            return x if x.value else y
    if a is b:
        return a
    return constant(True) if ~a is b else None


def _not(a: Expr) -> Expr | None:
    """~~x  ->  x;    ~(i < j)  ->  j <= i for integers only, because of NaN;    ~(x == y)  ->  x != y"""
    if a.head == "const":
        return constant(not a.value)
    if a.head is Fn.NOT:
        return a.args[0]
    if a.head in (Fn.EQ, Fn.NE):
        return raw(Fn.NE if a.head is Fn.EQ else Fn.EQ, *a.args)
    if a.head in (Fn.LT, Fn.LE) and all(x.kind == "int" for x in a.args):
        return raw(Fn.LE if a.head is Fn.LT else Fn.LT, *a.args[::-1])
    return None


def _differ(a: Expr, b: Expr) -> Expr:
    return (a & ~b) | (~a & b)


BOOL_RULES: dict[Fn, Rule] = {
    Fn.AND: _and,
    Fn.OR: _or,
    Fn.NOT: _not,
    Fn.XOR: _differ,
    Fn.NE: _differ,
    Fn.EQ: lambda a, b: (a & b) | (~a & ~b),
    Fn.WHERE: lambda condition, then, otherwise: (condition & then) | (~condition & otherwise),
}
