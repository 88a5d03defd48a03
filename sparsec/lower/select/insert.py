"""A running set of the best shares, by taking the best of a tile out one at a time for as long as one gets in.

Late in a long walk few candidates do: a tile is looked through a few times then, where sorting takes as long as ever.
A share is never negative, so that with whether it is forced it fits the order of int32: a *rank* of ``LOWEST`` is none.
Candidates come in ascending order, so among equal ranks whoever is in the set already stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.scalars import add, both, least, sub
from sparsec.lower.select.chosen import ID_BITS, LOW_IDS, LOW_WORD
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import EMPTY_KEY, Axis, Node

LOWEST = -(2**31)
NOBODY = 2**30
"""From here on ids are no candidate's; they tell slots that hold nothing apart."""


@dataclass(frozen=True, slots=True)
class Axes:
    """Tokens, slots of the set, candidates of a tile, and as many as slots once more."""

    rows: Axis
    slots: Axis
    keys: Axis
    spare: Axis


def ranks(shares: Node, forced: Node | None, open_: Node) -> Node:
    """The ranks of a tile's candidates, int32."""
    found = tile.cast(tile.apply(Fn.SHR, tile.apply(Fn.RANK, shares, tile.const(0)), ID_BITS), "int32")
    if forced is not None:
        found = tile.apply(Fn.WHERE, forced, tile.apply(Fn.XOR, found, LOWEST), found)
    return tile.apply(Fn.WHERE, open_, add(found, 1), LOWEST)


def start(axes: Axes) -> list[Node]:
    """A set of nothing: ranks and ids ``[rows, slots]``."""
    nobody = add(tile.full(0, axes.rows, axes.slots, dtype="int32"), add(tile.iota(axes.slots), NOBODY))
    return [tile.full(LOWEST, axes.rows, axes.slots, dtype="int32"), nobody]


def insert(kept: Sequence[Node], new: Node, ids: Node, axes: Axes) -> list[Node]:
    """The best of the set and of a tile with these ids, in no order."""
    better = tile.apply(Fn.LT, tile.reduce("min", kept[0], axes.slots), new)
    count = tile.reduce("sum", tile.apply(Fn.WHERE, better, 1, 0), axes.keys)

    def visit(_: Node, new: Node, held: Node, names: Node) -> Sequence[Node]:
        top, low = tile.reduce("max", new, axes.keys), tile.reduce("min", held, axes.slots)
        first = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, new, top), ids, 2**31 - 1)
        first = tile.reduce("min", first, axes.keys)
        last = tile.reduce("max", tile.apply(Fn.WHERE, tile.apply(Fn.EQ, held, low), names, -1), axes.slots)
        goes = both(tile.apply(Fn.EQ, names, last), tile.apply(Fn.LT, low, top))
        held, names = tile.apply(Fn.WHERE, goes, top, held), tile.apply(Fn.WHERE, goes, first, names)
        return [tile.apply(Fn.WHERE, tile.apply(Fn.EQ, ids, first), LOWEST, new), held, names]

    steps = least(tile.reduce("max", count, axes.rows), axes.slots.size)
    return tile.loop(0, steps, 1, [new, *kept], visit)[1:]


def descending(kept: Sequence[Node], axes: Axes) -> Node:
    """The set as rank keys in order, ``EMPTY_KEY`` where it holds nothing."""
    rank, ids = sub(kept[0], 1), kept[1]
    score = tile.apply(Fn.AND, tile.apply(Fn.OR, tile.cast(rank, "int64"), 2**31), LOW_WORD)
    key = tile.apply(Fn.OR, tile.apply(Fn.SHL, score, ID_BITS), sub(LOW_IDS, tile.cast(ids, "int64")))
    key = tile.apply(Fn.WHERE, tile.apply(Fn.LE, 0, rank), key, tile.apply(Fn.OR, key, EMPTY_KEY))
    key = tile.apply(Fn.WHERE, tile.apply(Fn.LT, ids, NOBODY), key, EMPTY_KEY)
    empty = tile.full(EMPTY_KEY, axes.rows, axes.slots, dtype="int64")
    return tile.top_insert(empty, tile.rename(key, axes.slots, axes.spare), axes.slots, axes.spare)
