"""Candidates gathered by row: the children of what a row chose one level up, ``slots * fanout`` of them instead of all.

A parent's children lie side by side, so that a tile of candidates is whole parents, or a part of one.
"""

from __future__ import annotations

from sparsec.lower import parents
from sparsec.lower.scalars import add, both, mul
from sparsec.lower.select.frame import Frame, sharing
from sparsec.plan.selection.parents import Parents
from sparsec.plan.specs import Selector
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node
from sparsec.tile.schedule import Schedule, ScheduleError

ORDER = "children"
"""The loop order's name."""


def fits(spec: Selector) -> bool:
    """Whether what is asked of a spec is known from the children alone."""
    return spec.parents is not None and spec.weights != "softmax_all"


def wanted(spec: Selector, schedule: Schedule) -> bool:
    """Whether a schedule walks over the children; ScheduleError where that does not do."""
    if schedule.order == ORDER and not fits(spec):
        raise ScheduleError(f"the order {ORDER!r} is for choices within lists, weighed by themselves; use 'one_pass'")
    return schedule.order == ORDER


def by_row(f: Frame) -> bool:
    """Whether every row of a tile has candidates of its own; a program of one query has no such axis, where it may."""
    return f.schedule.order == ORDER and (f.rows.size > 1 or f.schedule.split_dims)


def tiles(above: Parents, block: int) -> int:
    """Tiles of ``block`` candidates that hold a row's children."""
    return -(-above.slots // max(block // above.fanout, 1)) * -(-above.fanout // block)


def list_of(f: Frame, above: Parents) -> Node:
    """The list one level up that this program's unit chooses within."""
    units = f.spec.heads // sharing(f.spec)
    unit = tile.apply(Fn.TRUNCDIV, f.head, sharing(f.spec))
    return tile.apply(Fn.TRUNCDIV, mul(unit, above.heads), units)


def numbers(f: Frame, above: Parents, at: Node) -> Node:
    """The candidates of tile ``at`` of a program's one token; the number of blocks where there is none."""
    place = (f.batch, tile.program_id(0), list_of(f, above))
    return of_list(above, f.keys, at, place, tile.param(f.spec.block_length))


def of_list(above: Parents, keys: Axis, at: Node, place: tuple[Node, Node, Node], none: Node) -> Node:
    """Tile ``at`` of the children of the list at a ``place``, (batch, row, list); ``none`` where there is no child."""
    block, lane = keys.size, tile.iota(keys)
    per, parts = max(block // above.fanout, 1), -(-above.fanout // block)
    if parts == 1:
        slot, child = add(mul(at, per), tile.apply(Fn.TRUNCDIV, lane, above.fanout)), _rest(lane, above.fanout)
        there = tile.apply(Fn.LT, lane, per * above.fanout) if per * above.fanout < block else None
    else:
        slot, child = tile.apply(Fn.TRUNCDIV, at, parts), add(mul(_rest(at, parts), block), lane)
        there = tile.apply(Fn.LT, child, above.fanout) if above.fanout % block else None
    bounds: dict[int, tile.Value] = {1: tile.param("TQ")}
    if parts == 1 and (above.slots % per or there is not None):  # some lanes have no parent
        bounds[3] = above.slots
    parent = parents.units(above, "TQ", place, slot, bounds)
    known = tile.apply(Fn.LE, 0, parent)
    found = add(mul(parent, above.fanout), child)
    return tile.apply(Fn.WHERE, known if there is None else both(there, known), found, none)


def _rest(x: Node, by: int) -> Node:
    return tile.apply(Fn.TRUNCMOD, x, by) if by > 1 else tile.const(0)
