"""Numbers of a few turns of a loop read before it, as one tile: a turn would wait for its own before it asks for keys.

A turn's number is the sum over the tile where its place is the turn's. What is worked out from such a number and then
looked up in a table is looked up for the whole tile, before the loop too.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.scalars import add
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor, TileOp

Index = Sequence[tile.Value]


def turns(tensor: Tensor, place: Index, first: Node, axis: Axis, stop: Node, other: float) -> Node:
    """``tensor[place, first …]``; ``other`` from ``stop`` on."""
    bounds: dict[int, tile.Value] = {tensor.rank - 1: stop}
    return tile.load(tensor, *place, add(first, tile.iota(axis)), bounds=bounds, other=other)


def turn(numbers: Node, place: Node) -> Node:
    """One of them."""
    (axis,) = numbers.axes
    zero = tile.const(0.0 if numbers.dtype == "float32" else 0, numbers.dtype)
    return tile.reduce("sum", tile.apply(Fn.WHERE, tile.apply(Fn.EQ, tile.iota(axis), place), numbers, zero), axis)


def looked_up(table: Tensor, batch: Node, block: Node) -> Node:
    """``table[batch, block]``, before the loop where ``block`` follows from one of several numbers."""
    found = _source(block)
    blocks = None if found is None else _over(block, found)
    if found is None or blocks is None:
        return tile.load(table, batch, block)
    numbers, place = found.args[0].args[1], found.args[0].args[0].args[1]
    if blocks.axes != numbers.axes:
        return tile.load(table, batch, block)
    return turn(tile.load(table, batch, blocks), place)


def _source(node: Node) -> Node | None:
    """The one ``turn`` that a scalar is worked out from."""
    if node.op is TileOp.REDUCE:
        return node if _is_turn(node) else None
    if node.op is not TileOp.MAP:
        return None
    found = {id(x): x for a in node.args if (x := _source(a)) is not None}
    return next(iter(found.values())) if len(found) == 1 else None


def _is_turn(node: Node) -> bool:
    (where,) = node.args
    if node.attrs[0] != "sum" or where.op is not TileOp.MAP or where.attrs[0] is not Fn.WHERE:
        return False
    here, numbers, _ = where.args
    same = here.op is TileOp.MAP and here.attrs[0] is Fn.EQ and here.args[0].op is TileOp.IOTA
    return same and here.args[0].axes == numbers.axes and not here.args[1].axes and not numbers.free


def _over(node: Node, found: Node) -> Node | None:
    """A scalar worked out from all numbers instead of one; None where it depends on the turn otherwise."""
    if node is found:
        return node.args[0].args[1]
    if not node.free:
        return node
    if node.op is not TileOp.MAP:
        return None
    args = [_over(a, found) for a in node.args]
    assert isinstance(node.attrs[0], Fn)
    return None if None in args else tile.apply(node.attrs[0], *(a for a in args if a is not None))
