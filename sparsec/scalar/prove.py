"""Proofs of ``a <= b`` for all values of the variables, which are >= 0, with ``i_lo <= i_hi``."""

from __future__ import annotations

from sparsec.scalar.expr import Expr, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.isolate import is_positive
from sparsec.scalar.polynomial import Monomial, Polynomial, added, expression, polynomial, scaled
from sparsec.scalar.ranges import Range, range_of
from sparsec.scalar.walk import substitute, variables

NO_LIMIT = 2**31 - 1
"""Stands for a missing upper bound: every expression is taken to be at most this."""

DEPTH = 6


def is_open(bound: Expr) -> bool:
    """Whether nothing bounds a range here."""
    return bound.head == "const" and int(bound.value or 0) >= NO_LIMIT


def at_most(a: Expr, b: Expr) -> bool:
    """Whether ``a <= b`` is proved; False promises nothing."""
    width = var("i_lo") + var("i_width")
    return _at_most(substitute(a, {"i_hi": width}), substitute(b, {"i_hi": width}))


def _at_most(a: Expr, b: Expr) -> bool:
    if a is b or b.value == NO_LIMIT:
        return True
    if a.head is Fn.MAXIMUM:
        return all(_at_most(x, b) for x in a.args)
    if b.head is Fn.MINIMUM:
        return all(_at_most(a, x) for x in b.args)
    if a.head is Fn.WHERE or b.head is Fn.WHERE:
        left, right = (x.args[1:] if x.head is Fn.WHERE else (x,) for x in (a, b))
        return all(_at_most(x, y) for x in left for y in right)
    if a.head is Fn.MINIMUM and any(_at_most(x, b) for x in a.args):
        return True
    if b.head is Fn.MAXIMUM and any(_at_most(a, x) for x in b.args):
        return True
    return _not_negative(polynomial(b - a), DEPTH)


def _not_negative(value: Polynomial, depth: int) -> bool:
    whole = expression(value)
    if range_of(whole, {name: Range(0) for name in variables(whole)}).lo >= 0:
        return True
    if depth == 0:
        return False
    divisions: list[Monomial] = [
        m for m in value if len(m) == 1 and m[0].head is Fn.FLOORDIV and is_positive(m[0].args[1])
    ]
    smaller = [*_without_pairs(value, divisions, depth), *_without_divisions(value, divisions)]
    return any(_not_negative(p, depth - 1) for p in smaller)


def _without_pairs(value: Polynomial, divisions: list[Monomial], depth: int) -> list[Polynomial]:
    """x // m - y // m + rest  ->  rest, where x >= y."""
    found = []
    for m in divisions:
        for n in divisions:
            (x, by), (y, same) = m[0].args, n[0].args
            if value[m] > 0 > value[n] and by is same and _not_negative(polynomial(x - y), depth - 1):
                share = min(value[m], -value[n])
                found.append(added(value, {m: share, n: -share}, -1))
    return found


def _without_divisions(value: Polynomial, divisions: list[Monomial]) -> list[Polynomial]:
    """4*m * (x // m)  >=  4 * (x - m + 1),    -4*m * (x // m)  >=  -4 * x"""
    found = []
    for m in divisions:
        x, by = m[0].args
        factor = value[m]
        if isinstance(by.value, int) and factor % by.value == 0:
            least = polynomial(x - by + 1 if factor > 0 else x)
            found.append(added(added(value, {m: factor}, -1), scaled(least, factor // by.value)))
    return found
