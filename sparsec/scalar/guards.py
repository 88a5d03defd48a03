"""Conditions of a mask that do not read the key: whether they hold for some or for all queries of a tile."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.scalar.dnf import Atom
from sparsec.scalar.expr import Expr
from sparsec.scalar.extreme import extreme
from sparsec.scalar.walk import depends_on


@dataclass(frozen=True, slots=True)
class Guard:
    """Booleans over the ends of the tile: false ``any`` means that no query passes, true ``every`` that all do."""

    any: Expr
    every: Expr


def guard(atom: Atom, ends: tuple[Expr, Expr]) -> Guard | None:
    """The guard of an atom that does not read j; None where i enters in a way that cannot be bounded."""
    if atom.relation == "opaque":
        return None if depends_on(atom.value, "i") else Guard(atom.value, atom.value)
    low, high = (extreme(atom.value, "i", ends, up) for up in (False, True))
    if low is None or high is None:
        return None
    if atom.relation == "le":
        return Guard(low.value <= 0, high.value <= 0)
    zero = Guard((low.value <= 0) & (high.value >= 0), (high.value <= 0) & (low.value >= 0))
    return zero if atom.relation == "eq" else Guard(~zero.every, ~zero.any)
