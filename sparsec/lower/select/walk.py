"""Which candidates a program scores, a tile at a time: all that its rows may choose from, or the children of lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sparsec.lower import parents
from sparsec.lower.ranges import tile_ranges
from sparsec.lower.scalars import add, both, mul
from sparsec.lower.select import children
from sparsec.lower.select.candidates import as_keys
from sparsec.lower.select.frame import Frame
from sparsec.plan.specs import Piece, Selector
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor
from sparsec.tile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Walk:
    """The tiles of candidates that a program scores.

    Attributes:
        number: from a tile to its candidates.
        within: from candidates and which may be chosen at all, those that lie within the rows' lists of larger units.
    """

    start: tile.Value
    stop: tile.Value
    number: Callable[[Node], Node]
    within: Callable[[Node, Node], Node]


def walk(
    spec: Selector,
    schedule: Schedule,
    keys: Axis,
    place: tuple[Node, Node, Node],
    env: dict[str, Node],
    tensors: Mapping[str, Tensor],
) -> Walk:
    """The walk of rows whose lists of larger units, where there are any, are at a ``place`` (batch, row, list)."""
    above, block, limit = spec.parents, schedule.block, tile.param(spec.block_length)
    if above is not None and children.wanted(spec, schedule):
        count = children.tiles(above, block)
        return Walk(0, count, lambda at: children.of_list(above, keys, at, place, limit), lambda _, open_: open_)
    piece = Piece(spec.keys, spec.keys, spec.block_length, as_keys(spec.eligible))
    ranges, chosen = tile_ranges(piece, block, limit, env, tensors), list[Node]()
    if above is not None:
        chosen = list(parents.listed(above, "TQ", *place))

    def within(number: Node, open_: Node) -> Node:
        return open_ if above is None else both(open_, parents.children(above, chosen, number))

    return Walk(ranges[0].start, ranges[-1].stop, lambda at: add(mul(at, block), tile.iota(keys)), within)


def of_frame(f: Frame) -> Walk:
    """The walk of a tile of tokens."""
    alone = f.schedule.order == children.ORDER and not children.by_row(f)
    unit = tile.const(0) if f.spec.parents is None else children.list_of(f, f.spec.parents)
    row = mul(tile.program_id(0), f.spec.query_block) if alone else f.row
    return walk(f.spec, f.schedule, f.keys, (f.batch, row, unit), f.env, f.tensors)
