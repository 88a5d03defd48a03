"""Integer expressions as sums of products: the canonical form of dims, and the ground of range and bounds analysis.

A monomial is a sorted tuple of atoms (variables, elements, and calls other than + - * of integers); the empty one
stands for the constant. A polynomial maps monomials to coefficients, none of them 0.
"""

from __future__ import annotations

from functools import reduce

from sparsec.scalar.expr import Expr, constant, raw
from sparsec.scalar.fn import Fn
from sparsec.scalar.order import OrderKey, order_key

Monomial = tuple[Expr, ...]
Polynomial = dict[Monomial, int]

LARGEST = 64  # monomials; a product that would have more stays a product


def polynomial(x: Expr) -> Polynomial:
    """The polynomial of an integer expression."""
    assert x.kind == "int", f"{x} is no integer"
    if x.head == "const":
        assert isinstance(x.value, int)
        return {(): x.value} if x.value else {}
    if x.head is Fn.NEG:
        return scaled(polynomial(x.args[0]), -1)
    if x.head is Fn.ADD:
        return added(polynomial(x.args[0]), polynomial(x.args[1]))
    if x.head is Fn.SUB:
        return added(polynomial(x.args[0]), polynomial(x.args[1]), -1)
    if x.head is Fn.MUL:
        product = multiplied(polynomial(x.args[0]), polynomial(x.args[1]))
        return {(x,): 1} if product is None else product
    return {(x,): 1}


def added(a: Polynomial, b: Polynomial, sign: int = 1) -> Polynomial:
    """a + sign * b."""
    result = dict(a)
    for monomial, factor in b.items():
        total = result.pop(monomial, 0) + sign * factor
        if total:
            result[monomial] = total
    return result


def scaled(a: Polynomial, factor: int) -> Polynomial:
    """factor * a."""
    return {monomial: factor * c for monomial, c in a.items()} if factor else {}


def multiplied(a: Polynomial, b: Polynomial) -> Polynomial | None:
    """a * b; None where that would be too long."""
    if len(a) * len(b) > LARGEST:
        return None
    result: Polynomial = {}
    for m, c in a.items():
        for n, d in b.items():
            result = added(result, {tuple(sorted(m + n, key=order_key)): c * d})
    return result


def divided(a: Polynomial, divisor: Polynomial) -> tuple[Polynomial, Polynomial]:
    """(quotient, rest) with a = quotient * divisor + rest, for a divisor of one term; a constant rest is reduced."""
    [(atoms, factor)] = divisor.items()
    quotient: Polynomial = {}
    rest: Polynomial = {}
    for monomial, c in a.items():
        left = _without(monomial, atoms)
        share = 0 if left is None or (monomial and c % factor) else c // factor
        if share and left is not None:
            quotient = added(quotient, {left: share})
        if c != share * factor:
            rest[monomial] = c - share * factor
    return quotient, rest


def _without(monomial: Monomial, atoms: Monomial) -> Monomial | None:
    left = list(monomial)
    for atom in atoms:
        found = next((k for k, own in enumerate(left) if own is atom), None)
        if found is None:
            return None
        del left[found]
    return tuple(left)


def expression(a: Polynomial) -> Expr:
    """The canonical expression: positive terms by degree and name, then negative ones, then the constant."""
    number = a.get((), 0)
    positive = [(m, c) for m, c in sorted(a.items(), key=_rank) if m and c > 0]
    negative = [(m, c) for m, c in sorted(a.items(), key=_rank) if m and c < 0]
    if not positive and number > 0:
        positive, number = [((), number)], 0
    if not positive and not negative:
        return constant(number)
    first = _term(*positive[0]) if positive else raw(Fn.NEG, _term(negative[0][0], -negative[0][1]))
    result = reduce(lambda x, t: raw(Fn.ADD, x, _term(*t)), positive[1:], first)
    result = reduce(lambda x, t: raw(Fn.SUB, x, _term(t[0], -t[1])), negative[0 if positive else 1 :], result)
    if number:
        result = raw(Fn.ADD if number > 0 else Fn.SUB, result, constant(abs(number)))
    return result


def _rank(term: tuple[Monomial, int]) -> tuple[int, list[OrderKey]]:
    return -len(term[0]), [order_key(atom) for atom in term[0]]


def _term(monomial: Monomial, factor: int) -> Expr:
    atoms = (constant(factor), *monomial) if factor != 1 or not monomial else monomial
    return reduce(lambda x, y: raw(Fn.MUL, x, y), atoms)
