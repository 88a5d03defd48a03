"""Loop nests: rows as loops and register-tile rows, columns as vectors along the lane axis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from sparsec.backends.tvm.kernel import Kernel
from sparsec.backends.tvm.point import Point
from sparsec.backends.tvm.text import plus, times
from sparsec.backends.tvm.tiles import Tile, plan_each
from sparsec.tile.language import Axis

Rows = list[dict[Axis, str]]


@contextmanager
def rows_of(kernel: Kernel, tile: Tile) -> Iterator[Rows]:
    """The loops over all row axes; gives the row indices of one straight-line piece."""
    with ExitStack() as stack:
        at: dict[Axis, str] = {}
        for axis in tile.space:
            if axis not in (tile.lane, tile.row):
                at[axis] = stack.enter_context(kernel.loop(axis.size))
        if tile.row is None:
            yield [at]
            return
        piece = stack.enter_context(kernel.loop(tile.row.size // tile.rows))
        yield [{**at, tile.row: plus(times(piece, tile.rows), str(k))} for k in range(tile.rows)]


def columns_of(kernel: Kernel, tile: Tile, rows: Rows) -> Iterator[list[Point]]:
    """The points of one piece, row by row: pieces along the lane axis are a loop, or straight-line if they are few."""
    if tile.lane is None:
        yield [Point(row) for row in rows]
        return
    lanes = kernel.found.lanes
    width, pieces = lanes.width(tile.lane), lanes.chunks(tile.lane) // tile.columns
    if lanes.unrolled(tile.lane):
        for piece in range(pieces):
            yield _piece(tile, rows, width, str(piece))
        return
    with kernel.loop(pieces, "c") as at:
        yield _piece(tile, rows, width, at)


def _piece(tile: Tile, rows: Rows, width: int, piece: str) -> list[Point]:
    starts = [plus(times(piece, tile.columns * width), str(k * width)) for k in range(tile.columns)]
    return [Point(row, tile.lane, start, width) for row in rows for start in starts]


def each_point(kernel: Kernel, axes: tuple[Axis, ...], lane: Axis | None) -> Iterator[Point]:
    """Every point of a tile, in loops of its own."""
    tile = plan_each(axes, lane if lane in axes else None, kernel.found.lanes)
    with rows_of(kernel, tile) as rows:
        for points in columns_of(kernel, tile, rows):
            yield from points
