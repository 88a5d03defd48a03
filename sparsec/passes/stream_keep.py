"""Which rows of an input a decode cache may drop: keys older than every window that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.variant import Variant
from sparsec.scalar.bounds import Bounded, KeyRange, key_ranges
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.prove import at_most
from sparsec.scalar.walk import substitute, tensors, variables

FIRST = var("i_lo")
PROBES = (*range(0, 300), *range(300, 70000, 997), 10**6)
"""Query positions at which the age of a range's first key is looked at before it is proved."""


@dataclass(frozen=True, slots=True)
class Reach:
    """The last ``window`` rows before a query, its own among them, and ``sinks`` rows at the start; None: all rows."""

    window: int | None
    sinks: int = 0

    def __or__(self, other: Reach) -> Reach:
        """What either reads."""
        if self.window is None or other.window is None:
            return ALL
        return Reach(max(self.window, other.window), max(self.sinks, other.sinks))


ALL, NONE = Reach(None), Reach(0)


def reach(variant: Variant, name: str) -> Reach:
    """Which rows of an input with a row per token some later query may still read."""
    memories = [n for n in variant.nodes for s in n.src if s.op is Op.INPUT and s["name"] == name]
    if any(m.op is not Op.TOKENS for m in memories):
        return ALL  # captured, scored or mapped
    users = [user for user in variant.nodes if any(m in user.src for m in memories)]
    return reduce(lambda a, b: a | b, map(_read_by, users), NONE)


def chosen_only(variant: Variant, name: str) -> bool:
    """Whether an input is read through lists of chunks alone."""
    memories = [n for n in variant.nodes for s in n.src if s.op is Op.INPUT and s["name"] == name]
    users = [user for user in variant.nodes if any(m in user.src for m in memories)]
    attends = [u for u in users if u.op is not Op.MASK and not _by_the_way(u)]
    listed = all(u.op is Op.ATTEND and any(s.op is not Op.MASK for s in u.positional[2:]) for u in attends)
    return bool(attends) and listed and all(m.op is Op.TOKENS for m in memories)


def _by_the_way(user: Node) -> bool:
    """A summary whose vectors are given reads no token."""
    return user.op is Op.SUMMARY and user.word("fn") == "given"


def _read_by(user: Node) -> Reach:
    if user.op is Op.SUMMARY:
        return NONE if user.word("fn") == "given" else Reach(user.integer("size"))
    if user.op is Op.MASK:
        return NONE  # it is read through the attend
    if user.op is not Op.ATTEND or any(s.op is not Op.MASK for s in user.positional[2:]):
        return ALL
    masks = [m for s in user.positional[2:] if (m := s.expr("where")) is not None]
    return shown(reduce(lambda a, b: a & b, masks, constant(True)))


def shown(where: Expr) -> Reach:
    """The rows that a mask over i and j may show to a query or a later one."""
    found = key_ranges(where)
    if not isinstance(found, Bounded):
        return ALL
    return reduce(lambda a, b: a | b, [_range(r) for r in found.ranges], NONE)


def _range(r: KeyRange) -> Reach:
    here = {"i_hi": FIRST}
    lo, hi = substitute(r.lo, here), substitute(r.hi, here)
    pinned = _most(hi)
    if pinned is not None:
        return Reach(0, pinned)
    if tensors(lo) or variables(lo).keys() - {"i_lo"}:
        return ALL
    age = max(i - evaluate(lo, {"i_lo": i}) for i in PROBES)
    return Reach(int(age) + 1) if age < PROBES[-1] // 2 and at_most(FIRST - int(age), lo) else ALL


def _most(hi: Expr) -> int | None:
    """A constant that a range's end never exceeds."""
    if tensors(hi) or variables(hi).keys() - {"i_lo"}:
        return None
    most = max(int(evaluate(hi, {"i_lo": i})) for i in PROBES)
    return most if most < PROBES[-1] // 2 and at_most(hi, constant(most)) else None
