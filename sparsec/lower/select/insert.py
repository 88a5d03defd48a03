"""A running set of the best rank keys, by taking the best of a tile out one at a time for as long as one gets in.

Late in a long walk few candidates do: a tile is looked through a few times then, where to sort it
takes as long as ever.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.scalars import both, least
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import EMPTY_KEY, Axis, Node


def start(rows: Axis, slots: Axis) -> Node:
    """A set of nothing: keys below all others, no two alike, so that one is replaced at a time."""
    empty = tile.full(EMPTY_KEY, rows, slots, dtype="int64")
    return tile.apply(Fn.ADD, empty, tile.cast(tile.iota(slots), "int64"))


def insert(kept: Node, new: Node, rows: Axis, slots: Axis, keys: Axis) -> Node:
    """The best of the set and the keys of a tile, in no order."""
    better = tile.apply(Fn.LT, tile.reduce("min", kept, slots), new)
    count = tile.reduce("sum", tile.apply(Fn.WHERE, better, 1, 0), keys)

    def visit(_: Node, kept: Node, new: Node) -> Sequence[Node]:
        top, low = tile.reduce("max", new, keys), tile.reduce("min", kept, slots)
        goes = both(tile.apply(Fn.EQ, kept, low), tile.apply(Fn.LT, low, top))
        kept = tile.apply(Fn.WHERE, goes, top, kept)
        return [kept, tile.apply(Fn.WHERE, tile.apply(Fn.EQ, new, top), EMPTY_KEY, new)]

    steps = least(tile.reduce("max", count, rows), slots.size)
    return tile.loop(0, steps, 1, [kept, new], visit)[0]


def descending(kept: Node, rows: Axis, slots: Axis, spare: Axis) -> Node:
    """The set in order; ``EMPTY_KEY`` where it holds nothing."""
    empty = tile.full(EMPTY_KEY, rows, slots, dtype="int64")
    some = tile.apply(Fn.LE, EMPTY_KEY + slots.size, kept)
    kept = tile.apply(Fn.WHERE, some, kept, EMPTY_KEY)
    return tile.top_insert(empty, tile.rename(kept, slots, spare), slots, spare)
