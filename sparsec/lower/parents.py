"""Which units lie within lists of larger ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce

from sparsec.plan.selection.parents import Parents
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor


def tensor(parents: Parents, length: str) -> Tensor:
    """``[B,length,heads,slots]``."""
    return Tensor(parents.ids, "int32", ("B", length, parents.heads, parents.slots))


def listed(parents: Parents, length: str, batch: Node, row: Node, head: Node | int) -> Iterator[Node]:
    """The larger units that each of some rows chose, ``[rows]`` by slot."""
    ids = tensor(parents, length)
    limit: dict[int, tile.Value] = {1: tile.param(length)}
    for slot in range(parents.slots):
        yield tile.load(ids, batch, row, head, slot, bounds=dict(limit), other=-1)


def children(parents: Parents, chosen: Iterable[Node], unit: Node) -> Node:
    """Which units are parts of what was ``chosen`` ``[rows,units]``."""
    parent = tile.apply(Fn.TRUNCDIV, unit, parents.fanout)
    return reduce(lambda a, b: tile.apply(Fn.OR, a, b), (tile.apply(Fn.EQ, one, parent) for one in chosen))
