"""Solving an atom for one variable: ``i - j < 512`` gives ``j >= i - 511``, ``64 * (j // 64) <= i`` an upper bound."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.scalar.dnf import Atom
from sparsec.scalar.expr import Expr
from sparsec.scalar.fn import Fn
from sparsec.scalar.polynomial import Polynomial, added, expression, polynomial, scaled
from sparsec.scalar.walk import depends_on


@dataclass(frozen=True, slots=True)
class Limit:
    """``variable <= value`` if ``upper``, else ``variable >= value``; exactly equivalent to what it came from."""

    upper: bool
    value: Expr


def isolate(atom: Atom, name: str) -> list[Limit] | None:
    """The limits on an integer variable that together say the same as an atom; None if it is no such thing."""
    if atom.relation == "le":
        limit = _at_most_zero(polynomial(atom.value), name)
        return None if limit is None else [limit]
    if atom.relation != "eq":
        return None
    both = [_at_most_zero(polynomial(x), name) for x in (atom.value, -atom.value)]
    found = [limit for limit in both if limit is not None]
    return found if len(found) == 2 else None


def _at_most_zero(value: Polynomial, name: str) -> Limit | None:
    """c * x + rest <= 0, where x is the variable or a floor division to descend into."""
    value = without_modulo(value)
    own = [monomial for monomial in value if any(depends_on(atom, name) for atom in monomial)]
    if len(own) != 1 or len(own[0]) != 1:
        return None
    [x], factor = own[0], value[own[0]]
    rest = expression(scaled(added(value, {own[0]: factor}, -1), -1))
    bound = rest // factor if factor > 0 else -(rest // -factor)
    return _descend(x, Limit(factor > 0, bound), name)


def _descend(x: Expr, limit: Limit, name: str) -> Limit | None:
    """x // m <= k  ->  x <= m*k + m - 1;    x // m >= k  ->  x >= m*k"""
    if x.head == "var":
        return limit
    if x.head is not Fn.FLOORDIV or not is_positive(x.args[1]):
        return None
    inner, divisor = x.args
    if limit.upper:
        return _at_most_zero(polynomial(inner - divisor * limit.value - divisor + 1), name)
    return _at_most_zero(polynomial(divisor * limit.value - inner), name)


def is_positive(divisor: Expr) -> bool:
    """A divisor known to be positive: a number, or a dim (dims are)."""
    value = divisor.value
    return value > 0 if isinstance(value, int) else divisor.head == "var" and value not in ("b", "h", "i", "j", "c")


def without_modulo(value: Polynomial) -> Polynomial:
    """i - i % 64  ->  64 * (i // 64), where that makes a sum shorter."""
    for monomial, factor in value.items():
        if len(monomial) == 1 and monomial[0].head is Fn.MOD:
            x, m = monomial[0].args
            longer = polynomial(x - m * (x // m))
            shorter = added(added(value, {monomial: factor}, -1), scaled(longer, factor))
            if len(shorter) < len(value):
                return without_modulo(shorter)
    return value
