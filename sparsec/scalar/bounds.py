"""Band analysis: which keys a mask predicate can show to a tile of queries, and which of them it shows to all.

The predicate ranges over b, h, i (query position) and j (key position). As a union of conjunctions it gives one range
of keys per term, as expressions of the tile's first and last query ``i_lo`` and ``i_hi`` (both included), and of
whatever else the predicate reads without reading i or j (b, h, dims, elements such as ``w[h]``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import pairwise
from typing import Any

from sparsec.scalar.dnf import Atom, Term, TooLong, terms, text
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.extreme import Extreme, extreme
from sparsec.scalar.functions import maximum, minimum, where
from sparsec.scalar.guards import Guard, guard
from sparsec.scalar.interval import Range, Truth, decide
from sparsec.scalar.isolate import Limit, isolate
from sparsec.scalar.prove import NO_LIMIT, at_most
from sparsec.scalar.walk import depends_on, substitute, tensors, variables

ENDS = (var("i_lo"), var("i_hi"))
ZERO, OPEN = constant(0), constant(NO_LIMIT)


@dataclass(frozen=True, slots=True)
class KeyRange:
    """The keys of one term of a mask, for the queries ``i_lo … i_hi``; every range is half open, empty if lo >= hi.

    The caller clamps to the keys that exist: ``hi`` and ``full_hi`` are ``NO_LIMIT`` where nothing bounds them above.

    Attributes:
        lo, hi: outside, no query of the tile sees a key through this term.
        full_lo, full_hi: inside, every query of the tile sees every key: the interior that needs no mask.
        residual: the term has a part that bounds nothing, such as ``(i - j) % 4 == 0``; there is no interior.
        sparse_residual: the range may be far wider than what is seen: a residual whose range grows with the queries'
            positions, or bounds that hop about (random blocks). A block list may serve better.
    """

    lo: Expr
    hi: Expr
    full_lo: Expr
    full_hi: Expr
    residual: bool = False
    sparse_residual: bool = False


@dataclass(frozen=True, slots=True)
class Bounded:
    """The visible keys lie in the union of the ranges, which may overlap: make them disjoint before summing over them.

    Attributes:
        ordered: it is proved that lo and hi ascend from range to range, so that starting each range where those before
            it ended at the latest makes them disjoint.
    """

    ranges: tuple[KeyRange, ...]
    ordered: bool


@dataclass(frozen=True, slots=True)
class Unbounded:
    """A predicate with a term that bounds no key; ``reason`` is a sentence for ``explain``."""

    reason: str


@lru_cache(maxsize=512)
def key_ranges(predicate: Expr) -> Bounded | Unbounded:
    """The key ranges of a mask predicate.

    Args:
        predicate: a boolean over i and j, and anything that depends on neither.
    """
    try:
        found = [_key_range(term) for term in terms(predicate, "j")]
    except TooLong as error:
        return Unbounded(f"`{predicate}` is a union of {error}")
    for key_range in found:
        if isinstance(key_range, Unbounded):
            return key_range
    ranges = _sorted(_distinct([r for r in found if isinstance(r, KeyRange)]))
    ordered = all(at_most(a.lo, b.lo) and at_most(a.hi, b.hi) for a, b in pairwise(ranges))
    return Bounded(tuple(ranges), ordered)


def never(predicate: Expr) -> bool:
    """Whether a predicate is proved false for every query i >= 0 and key j >= 0; False promises nothing."""
    try:
        return all(_hopeless(term) for term in terms(predicate, "j"))
    except TooLong:
        return False


def _hopeless(term: Term) -> bool:
    known = {"i": Range(0), "j": Range(0)}
    if any(decide(atom.predicate, known) is Truth.NONE for atom in term):
        return True
    keys = _key_range(term)
    if isinstance(keys, Unbounded):
        return False
    lo, hi = (substitute(x, {"i_hi": ENDS[0]}) for x in (keys.lo, keys.hi))
    return at_most(hi, lo)


@dataclass(frozen=True, slots=True)
class _Edge:
    """A limit on j over the tile: what it is for the query most and least in its favour."""

    upper: bool
    any: Extreme
    every: Extreme


def _key_range(term: Term) -> KeyRange | Unbounded:
    edges: list[_Edge] = []
    guards: list[Guard] = []
    residual = False
    for atom in term:
        found = _edges(atom) if depends_on(atom.value, "j") else guard(atom, ENDS)
        if isinstance(found, list):
            edges.extend(found)
        elif found is not None:
            guards.append(found)
        else:
            residual = True
    if residual and not edges:
        return Unbounded(f"nothing in `{text(term)}` bounds j from below or above by a value that i bounds")
    return _assembled(edges, guards, residual)


def _edges(atom: Atom) -> list[_Edge] | None:
    limits = isolate(atom, "j")
    edges = [_edge(limit) for limit in limits or ()]
    known = [edge for edge in edges if edge is not None]
    return known if known and len(known) == len(edges) else None


def _edge(limit: Limit) -> _Edge | None:
    best, worst = (extreme(limit.value, "i", ENDS, up) for up in (limit.upper, not limit.upper))
    return None if best is None or worst is None else _Edge(limit.upper, best, worst)


def _assembled(edges: list[_Edge], guards: list[Guard], residual: bool) -> KeyRange:
    lower, upper = ([e for e in edges if e.upper is side] for side in (False, True))
    lo, full_lo = (_highest([ZERO, *values]) for values in _values(lower))
    hi, full_hi = (_lowest([v + 1 for v in values] or [OPEN]) for values in _values(upper))
    for condition in guards:
        hi, full_hi = where(condition.any, hi, 0), where(condition.every, full_hi, 0)
    if residual:
        full_lo = full_hi = ZERO
    loose = any(e.any.loose for e in edges)
    grows = depends_on(hi, "i_lo", "i_hi") != depends_on(lo, "i_lo", "i_hi") or hi is OPEN
    return KeyRange(lo, hi, full_lo, full_hi, residual, loose or (residual and grows))


def _values(edges: list[_Edge]) -> tuple[list[Expr], list[Expr]]:
    return [e.any.value for e in edges], [e.every.value for e in edges]


def _highest(values: list[Expr]) -> Expr:
    return reduce(lambda a, b: b if at_most(a, b) else a if at_most(b, a) else maximum(a, b), values)


def _lowest(values: list[Expr]) -> Expr:
    return reduce(lambda a, b: a if at_most(a, b) else b if at_most(b, a) else minimum(a, b), values)


def _distinct(ranges: list[KeyRange]) -> list[KeyRange]:
    """Without ranges that have no interior and lie within another."""
    kept: list[KeyRange] = []
    for k, r in enumerate(ranges):
        others = [*kept, *ranges[k + 1 :]]
        inside = any(at_most(o.lo, r.lo) and at_most(r.hi, o.hi) for o in others)
        same = any(o.lo is r.lo and o.hi is r.hi and o.full_lo is r.full_lo and o.full_hi is r.full_hi for o in kept)
        if not same and not (inside and r.residual):
            kept.append(r)
    return kept


class _Sample:
    """Any element of any captured tensor."""

    def __getitem__(self, index: object) -> int:
        return 512


def _sorted(ranges: list[KeyRange]) -> list[KeyRange]:
    """By where they lie for a tile far into a long sequence."""
    names = {n for r in ranges for x in (r.lo, r.hi) for n in variables(x)}
    captured = {n for r in ranges for x in (r.lo, r.hi) for n in tensors(x)}
    env: dict[str, Any] = {**dict.fromkeys(names, 2**20), **dict.fromkeys(captured, _Sample())}
    env |= {"i_lo": 10**6, "i_hi": 10**6 + 127}
    return sorted(ranges, key=lambda r: (evaluate(r.lo, env), evaluate(r.hi, env)))
