"""How a loop nest is cut: which rows and vectors one straight-line piece covers, and the register tile of a dot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparsec.backends.tvm.cost import is_unit
from sparsec.backends.tvm.lanes import UNROLLED, Lanes
from sparsec.tile.language import Axis, Node, TileOp

FEW_ROWS = 4
"""Up to so many rows, summing along vectors beats transposing the other operand."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A loop nest over ``space``.

    Attributes:
        row: the axis of which one piece covers ``rows`` indices; the other row axes are plain loops.
        columns: vectors along ``lane`` that one piece covers.
    """

    space: tuple[Axis, ...]
    lane: Axis | None
    row: Axis | None = None
    rows: int = 1
    columns: int = 1


@dataclass(frozen=True, slots=True)
class DotPlan:
    """How a dot is computed.

    Attributes:
        inner: vectors lie along the summed axis and are added up at the end; else along the result's lane axis.
        vector: the operand with the lane axis (of an inner dot without lanes: the first).
        other: the operand that gives the rows.
    """

    tile: Tile
    inner: bool
    vector: Node
    other: Node
    over: Axis


def divisors(number: int, limit: int) -> list[int]:
    """The divisors of ``number`` up to ``limit``, ascending."""
    return [d for d in range(1, min(number, limit) + 1) if number % d == 0]


def plan_each(space: tuple[Axis, ...], lane: Axis | None, lanes: Lanes) -> Tile:
    """The nest of elementwise work: one row and up to four vectors at a time."""
    columns = divisors(lanes.chunks(lane), UNROLLED)[-1] if lane else 1
    return Tile(space, lane, columns=columns)


def plan_dot(node: Node, lanes: Lanes, accumulators: int, home: Mapping[int, int]) -> DotPlan:
    """Lanes, form and register tile of a dot; ``home`` says in which region a node runs."""
    a, b = node.args[:2]
    over = node.attrs[0]
    assert isinstance(over, Axis)
    lane = lanes.pick(node.axes)
    vector, other = (a, b) if lane is None or lane in a.axes else (b, a)
    rows = tuple(axis for axis in node.axes if axis != lane)
    fresh = home[vector.serial] == home[node.serial]
    if _is_inner(vector, fresh, over, lane, rows, lanes):
        row = max(rows, key=lambda axis: axis.size, default=None) if lane is None else None
        tile = Tile(node.axes, lane, row, divisors(row.size, 8)[-1] if row else 1, 1)
        return DotPlan(tile, True, vector, other, over)
    return DotPlan(_register_tile(node.axes, lane, rows, lanes, accumulators), False, vector, other, over)


def _is_inner(vector: Node, fresh: bool, over: Axis, lane: Axis | None, rows: tuple[Axis, ...], lanes: Lanes) -> bool:
    if lane is None:
        return lanes.width(over) > 1
    load = vector.args[0] if vector.op is TileOp.CAST else vector
    count = 1
    for axis in rows:
        count *= axis.size
    return (
        load.op is TileOp.LOAD
        and fresh
        and is_unit(load, over)
        and not is_unit(load, lane)
        and count <= FEW_ROWS
        and lanes.width(over) == lanes.width(lane)
    )


def _register_tile(
    space: tuple[Axis, ...], lane: Axis | None, rows: tuple[Axis, ...], lanes: Lanes, accumulators: int
) -> Tile:
    """The tile with the most multiplications per operand read that fits the accumulators."""
    chunks = lanes.chunks(lane) if lane else 1
    best = (0.0, 0, Tile(space, lane))
    for axis in rows or (None,):
        for columns in divisors(chunks, 8):
            for count in divisors(axis.size, accumulators) if axis else [1]:
                if count * columns <= accumulators:
                    gain = count * columns / (count + columns)
                    best = max(best, (gain, columns, Tile(space, lane, axis, count, columns)), key=lambda b: b[:2])
    return best[2]
