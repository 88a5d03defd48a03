"""Folding of integers, which are mathematical integers here: ``sparsec.scalar.interval`` proves that they fit int32.

Divisors are taken to be different from 0; floor division and modulo round down.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from sparsec.scalar.expr import Expr, call, constant, raw
from sparsec.scalar.fn import Fn
from sparsec.scalar.order import order_key
from sparsec.scalar.polynomial import added, divided, expression, multiplied, polynomial, scaled

Rule = Callable[..., Expr | None]


def _number(x: Expr) -> int | None:
    return x.value if x.head == "const" and isinstance(x.value, int) else None


def _mul(a: Expr, b: Expr) -> Expr | None:
    product = multiplied(polynomial(a), polynomial(b))
    return None if product is None else expression(product)


def _floordiv(a: Expr, b: Expr) -> Expr | None:
    """(64*x + y + 70) // 64  ->  x + (y + 6) // 64 + 1"""
    divisor = polynomial(b)
    if len(divisor) != 1:
        return None
    quotient, terms = divided(polynomial(a), divisor)
    rest = expression(terms)
    if not terms or (_number(rest) is not None and _number(b) is not None):
        return expression(quotient)
    smaller, by = _reduced(rest, b)
    if smaller is a and by is b:
        return None
    return expression(added(quotient, polynomial(call(Fn.FLOORDIV, smaller, by))))


def _reduced(a: Expr, b: Expr) -> tuple[Expr, Expr]:
    """(x // 4) // 8  ->  x // 32;    (6*x + 3) // 4  ->  (3*x + 1) // 2"""
    number = _number(b)
    if number is None or number <= 0:
        return a, b
    if a.head is Fn.FLOORDIV and (_number(a.args[1]) or 0) > 0:
        return a.args[0], constant(number * (_number(a.args[1]) or 0))
    terms = polynomial(a)
    shared = math.gcd(number, *(c for monomial, c in terms.items() if monomial))
    if shared == 1:
        return a, b
    return expression({m: c // shared for m, c in terms.items() if c // shared}), constant(number // shared)


def _mod(a: Expr, b: Expr) -> Expr | None:
    """(64*x + y + 70) % 64  ->  (y + 6) % 64;    (x % 64) % 16  ->  x % 16"""
    divisor, number = polynomial(b), _number(b)
    if len(divisor) != 1:
        return None
    terms = divided(polynomial(a), divisor)[1]
    rest = expression(terms)
    if not terms or (_number(rest) is not None and number is not None):
        return rest
    inner = _number(rest.args[1]) if rest.head is Fn.MOD else None
    if inner and number and inner % number == 0:
        return call(Fn.MOD, rest.args[0], b)
    return None if rest is a else call(Fn.MOD, rest, b)


def _difference(a: Expr, b: Expr) -> int | None:
    """a - b where that is a constant."""
    terms = added(polynomial(a), polynomial(b), -1)
    return terms.get((), 0) if set(terms) <= {()} else None


def _extremum(fn: Fn) -> Rule:
    """minimum(x + 1, x)  ->  x;    minimum(minimum(x, 5), 3)  ->  minimum(x, 3)"""

    def rule(a: Expr, b: Expr) -> Expr | None:
        gap = _difference(a, b)
        if gap is not None:
            return a if (gap <= 0) == (fn is Fn.MINIMUM) else b
        for x, y in ((a, b), (b, a)):
            for kept, old in (x.args, x.args[::-1]) if x.head is fn else ():
                if _difference(old, y) is not None:
                    return call(fn, kept, call(fn, old, y))
        return None if order_key(a) <= order_key(b) else raw(fn, b, a)

    return rule


def _abs(a: Expr) -> Expr | None:
    value = _number(a)
    return None if value is None else constant(abs(value))


def _shift(fn: Fn) -> Rule:
    def rule(a: Expr, b: Expr) -> Expr | None:
        x, by = _number(a), _number(b)
        if by == 0 or x == 0:
            return a
        if x is not None and by is not None and by > 0:
            return constant(x << by if fn is Fn.SHL else x >> by)
        return None

    return rule


def _bits(fn: Fn) -> Rule:
    """x & 0  ->  0;    x & -1, x | 0, x ^ 0  ->  x"""
    neutral, absorbing = {Fn.AND: (-1, 0), Fn.OR: (0, -1), Fn.XOR: (0, None)}[fn]

    def rule(a: Expr, b: Expr) -> Expr | None:
        x, y = _number(a), _number(b)
        if x is not None and y is not None:
            return constant(x & y if fn is Fn.AND else x | y if fn is Fn.OR else x ^ y)
        if x is not None:
            return call(fn, b, a)
        return a if y == neutral else b if y is not None and y == absorbing else None

    return rule


def _compare(fn: Fn) -> Rule:
    """i < i + 1  ->  True;    3 == i  ->  i == 3"""

    def rule(a: Expr, b: Expr) -> Expr | None:
        gap = _difference(a, b)
        if gap is not None:
            return constant({Fn.LT: gap < 0, Fn.LE: gap <= 0, Fn.EQ: gap == 0, Fn.NE: gap != 0}[fn])
        if fn not in (Fn.EQ, Fn.NE) or _number(b) is not None:
            return None
        return raw(fn, b, a) if _number(a) is not None or order_key(b) < order_key(a) else None

    return rule


def where_rule(condition: Expr, then: Expr, otherwise: Expr) -> Expr | None:
    """The branch that a constant condition takes, or the one that both are; for numbers of any kind."""
    if condition.head == "const":
        return then if condition.value else otherwise
    return then if then is otherwise else None


INT_RULES: dict[Fn, Rule] = {
    Fn.ADD: lambda a, b: expression(added(polynomial(a), polynomial(b))),
    Fn.SUB: lambda a, b: expression(added(polynomial(a), polynomial(b), -1)),
    Fn.NEG: lambda a: expression(scaled(polynomial(a), -1)),
    Fn.MUL: _mul,
    Fn.FLOORDIV: _floordiv,
    Fn.MOD: _mod,
    Fn.ABS: _abs,
    Fn.NOT: lambda a: -a - 1,
    Fn.WHERE: where_rule,
    **{fn: _extremum(fn) for fn in (Fn.MINIMUM, Fn.MAXIMUM)},
    **{fn: _shift(fn) for fn in (Fn.SHL, Fn.SHR)},
    **{fn: _bits(fn) for fn in (Fn.AND, Fn.OR, Fn.XOR)},
    **{fn: _compare(fn) for fn in (Fn.LT, Fn.LE, Fn.EQ, Fn.NE)},
}
