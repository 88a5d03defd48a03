"""Keys that queries everywhere see (sinks, slots, summaries): their tiles are shared out among several programs."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.scalars import ceil_div, least, mul, sub
from sparsec.plan.specs import Piece
from sparsec.scalar.dnf import Term, TooLong, terms
from sparsec.scalar.fn import Fn
from sparsec.scalar.isolate import isolate
from sparsec.scalar.walk import depends_on
from sparsec.tile import build as tile
from sparsec.tile.language import Node


def wide_keys(piece: Piece) -> int | str:
    """How many of the first keys may be seen from everywhere: those below a constant edge of the mask, or all slots.

    The name of the length stands for all keys, where a memory's keys are few for many queries each: its summaries.
    """
    if piece.batched and piece.size is None and piece.length != "TK":
        return piece.length
    if piece.where is None or not piece.batched:
        return piece.size or 0
    try:
        found = [_edge(term) for term in terms(piece.where, "j")]
    except TooLong:
        return 0
    edge = max(found, default=0)
    return edge if piece.size is None else min(edge, piece.size)


def _edge(term: Term) -> int:
    """The keys below the least constant upper bound of a term; 0 where it has none."""
    limits = [limit for atom in term if not depends_on(atom.value, "i") for limit in isolate(atom, "j") or ()]
    bounds = [x.value.value + 1 for x in limits if x.upper and isinstance(x.value.value, int)]
    return max(min(bounds, default=0), 0)


@dataclass(frozen=True, slots=True)
class Shares:
    """Who does what, in a grid of key tiles of which the first ``wide`` have ``splits`` programs each.

    Attributes:
        tile: the key tile of this program.
        part: which share of its visits; 0 for a tile that is not wide.
        is_wide: whether this program's tile is shared; None where no tile is.
        programs: how many there are.
    """

    tile: Node
    part: Node
    is_wide: Node | None
    programs: Node
    splits: int

    def bounds(self, visits: Node) -> tuple[Node, Node]:
        """The first of this program's share of so many visits, and the end of it."""
        if self.is_wide is None:
            return tile.const(0), visits
        each = tile.apply(Fn.WHERE, self.is_wide, ceil_div(visits, self.splits), visits)
        start = least(mul(self.part, each), visits)
        return start, least(tile.apply(Fn.ADD, start, each), visits)


def shares(wide: int | str, splits: int, tiles: Node, pid: Node | None = None) -> Shares:
    """The share of program ``pid``; wide tiles (so many, or all) come first: they take longest."""
    pid = tile.program_id(0) if pid is None else pid
    if not wide:
        return Shares(pid, tile.const(0), None, tiles, 1)
    shared = tiles if isinstance(wide, str) else least(tiles, wide)
    is_wide = tile.apply(Fn.LT, pid, mul(shared, splits))
    other = sub(pid, mul(shared, splits - 1))
    at = tile.apply(Fn.WHERE, is_wide, tile.apply(Fn.TRUNCDIV, pid, splits), other)
    part = tile.apply(Fn.WHERE, is_wide, tile.apply(Fn.TRUNCMOD, pid, splits), 0)
    return Shares(at, part, is_wide, tile.apply(Fn.ADD, tiles, mul(shared, splits - 1)), splits)
