"""Which candidates lie within a list of larger units."""

from __future__ import annotations

from sparsec.lower.scalars import both, mul
from sparsec.lower.select.frame import Frame, sharing
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node


def listed(f: Frame) -> list[Node]:
    """The larger units that each row of a tile chose, ``[rows]`` each; none where any candidate will do."""
    parents = f.spec.parents
    if parents is None:
        return []
    units = f.spec.heads // sharing(f.spec)
    head = tile.apply(Fn.TRUNCDIV, mul(tile.program_id(1), parents.heads), units)
    tensor, bounds = f.tensors[parents.ids], {1: tile.param("TQ")}
    return [
        tile.load(tensor, f.batch, f.row, head, slot, bounds=dict(bounds), other=-1) for slot in range(parents.slots)
    ]


def narrowed(f: Frame, chosen: list[Node], block: Node, open_: Node) -> Node:
    """``open_``, of candidates ``block``, where they are parts of what was chosen."""
    if f.spec.parents is None:
        return open_
    parent, found = (
        tile.apply(Fn.TRUNCDIV, block, f.spec.parents.fanout),
        tile.apply(Fn.LT, tile.full(0, f.rows, f.keys, dtype="int32"), 0),
    )
    for one in chosen:
        found = tile.apply(Fn.OR, found, tile.apply(Fn.EQ, one, parent))
    return both(open_, found)
