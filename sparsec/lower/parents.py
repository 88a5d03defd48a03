"""Which units lie within lists of larger ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce

from sparsec.plan.selection.parents import Parents
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor


def tensors(parents: Parents, length: str) -> list[Tensor]:
    """The lists ``[B,length,heads,slots]``, and how many of their slots count."""
    lists: tuple[str | int, ...] = ("B", length, parents.heads)
    counts = [Tensor(parents.counts, "int32", lists)] if parents.counts is not None else []
    return [Tensor(parents.ids, "int32", (*lists, parents.slots)), *counts]


def units(
    parents: Parents, length: str, place: tuple[Node, Node, Node | int], slot: Node | int, bounds: dict[int, tile.Value]
) -> Node:
    """The unit in a slot of the list at a ``place`` (batch, row, list); -1 where there is none."""
    ids, *counts = tensors(parents, length)
    found = tile.load(ids, *place, slot, bounds=dict(bounds), other=-1)
    if not counts:
        return found
    lead = {at: bound for at, bound in bounds.items() if at < len(place)}
    count = tile.load(counts[0], *place, bounds=lead, other=0)
    return tile.apply(Fn.WHERE, tile.apply(Fn.LT, slot, count), found, -1)


def listed(parents: Parents, length: str, batch: Node, row: Node, head: Node | int) -> Iterator[Node]:
    """The larger units that each of some rows chose, ``[rows]`` by slot."""
    limit: dict[int, tile.Value] = {1: tile.param(length)}
    for slot in range(parents.slots):
        yield units(parents, length, (batch, row, head), slot, limit)


def children(parents: Parents, chosen: Iterable[Node], unit: Node) -> Node:
    """Which units are parts of what was ``chosen`` ``[rows,units]``."""
    parent = tile.apply(Fn.TRUNCDIV, unit, parents.fanout)
    return reduce(lambda a, b: tile.apply(Fn.OR, a, b), (tile.apply(Fn.EQ, one, parent) for one in chosen))
