"""Predicates as a union of terms, each the conjunction of atoms: ``P <= 0``, ``P == 0``, ``P != 0`` or opaque."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from sparsec.scalar.expr import Expr, constant
from sparsec.scalar.fn import Fn
from sparsec.scalar.polynomial import Polynomial, added, expression, polynomial
from sparsec.scalar.walk import depends_on

LARGEST = 64
CHOICES = (Fn.MINIMUM, Fn.MAXIMUM, Fn.ABS, Fn.WHERE)


@dataclass(frozen=True, slots=True)
class Atom:
    """``value <= 0``, ``value == 0`` or ``value != 0`` of an integer, or a boolean that is none of these.

    Attributes:
        relation: "le", "eq", "ne" or "opaque".
        predicate: the atom as it was written.
    """

    relation: str
    value: Expr
    predicate: Expr


Term = tuple[Atom, ...]


class TooLong(ValueError):
    """A predicate with more terms than are worth a loop each."""


def terms(predicate: Expr, split: str) -> list[Term]:
    """The terms whose union the predicate is; none for False, one empty term for True.

    ``minimum``, ``maximum``, ``abs`` and ``where`` that read the variable ``split`` are taken apart:
    ``abs(i - j) < w`` is a conjunction of two atoms.

    Raises:
        TooLong: more than 64 terms.
    """
    if predicate.head == "const":
        return [()] if predicate.value else []
    if predicate.head in (Fn.AND, Fn.OR):
        left, right = (terms(a, split) for a in predicate.args)
        return _product(left, right) if predicate.head is Fn.AND else _limited([*left, *right])
    if predicate.head is Fn.NOT and predicate.args[0].head in (Fn.AND, Fn.OR):
        a, b = predicate.args[0].args
        return terms((~a | ~b) if predicate.args[0].head is Fn.AND else (~a & ~b), split)
    if predicate.head not in (Fn.LT, Fn.LE, Fn.EQ, Fn.NE) or any(a.kind != "int" for a in predicate.args):
        return [(Atom("opaque", predicate, predicate),)]
    return _comparison(predicate, split)


def _comparison(predicate: Expr, split: str) -> list[Term]:
    value = predicate.args[0] - predicate.args[1]
    if predicate.head in (Fn.LT, Fn.LE):
        value = value + 1 if predicate.head is Fn.LT else value
        return _at_most_zero(polynomial(value), split, predicate)
    if _choice(polynomial(value), split) is None:
        return [(Atom("eq" if predicate.head is Fn.EQ else "ne", value, predicate),)]
    below, above = _at_most_zero(polynomial(value), split), _at_most_zero(polynomial(-value), split)
    return _product(below, above) if predicate.head is Fn.EQ else [(Atom("opaque", predicate, predicate),)]


def _at_most_zero(value: Polynomial, split: str, origin: Expr | None = None) -> list[Term]:
    """P + minimum(a, b) <= 0  ->  P + a <= 0 or P + b <= 0; and so on for maximum, abs and negative factors."""
    found = _choice(value, split)
    if found is None:
        return _decided(expression(value), origin)
    factor = value[(found,)]
    rest = added(value, {(found,): factor}, -1)
    options = (found.args[0], -found.args[0]) if found.head is Fn.ABS else found.args[-2:]
    left, right = (_at_most_zero(added(rest, polynomial(factor * x)), split) for x in options)
    if found.head is Fn.WHERE:
        condition = found.args[0]
        return _limited([*_product(terms(condition, split), left), *_product(terms(~condition, split), right)])
    either = (found.head is Fn.MINIMUM) == (factor > 0)
    return _limited([*left, *right]) if either else _product(left, right)


def _decided(value: Expr, origin: Expr | None) -> list[Term]:
    if value.head == "const":
        assert isinstance(value.value, int)
        return [()] if value.value <= 0 else []
    return [(Atom("le", value, value <= 0 if origin is None else origin),)]


def _choice(value: Polynomial, split: str) -> Expr | None:
    """A minimum, maximum, abs or where that reads the variable, alone in its monomial."""
    alone = (monomial[0] for monomial in value if len(monomial) == 1)
    return next((x for x in alone if x.head in CHOICES and depends_on(x, split)), None)


def _product(left: list[Term], right: list[Term]) -> list[Term]:
    if len(left) * len(right) > LARGEST:
        raise TooLong(f"more than {LARGEST} terms")
    return [_joined(a, b) for a in left for b in right]


def _joined(a: Term, b: Term) -> Term:
    return (*a, *(atom for atom in b if all(atom.value is not x.value or atom.relation != x.relation for x in a)))


def _limited(found: list[Term]) -> list[Term]:
    if len(found) > LARGEST:
        raise TooLong(f"more than {LARGEST} terms")
    return found


def text(term: Term) -> str:
    """A term for a message."""
    return str(reduce(lambda a, b: a & b, (atom.predicate for atom in term), constant(True)))
