"""Blocks of one level from those of the level below: two blocks side by side become one.

S <- P_right S_left + S_right        P <- P_right P_left
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.fenwick.leaf import store
from sparsec.lower.fenwick.rungs import Rungs, column_of, edges, tile_number, when
from sparsec.lower.per_head import PerHead
from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk.parts import CHUNKS, power, power_of_two
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor

COLUMNS = 64
"""Columns of a program."""


@dataclass(frozen=True, slots=True)
class Pair(PerHead):
    """Two blocks of a level, seen from the block that they make one level up.

    Attributes:
        number: of the block above.
    """

    rungs: Rungs
    level: int
    rows: Axis
    dims: Axis
    columns: Axis
    tiles: int
    number: Node
    column: Node

    def load(self, tensor: Tensor, block: Node, *index: Node, count: Node | None = None) -> Node:
        """A block's matrix or number, 0 where it is padded or not complete."""
        limits: dict[int, tile.Value] = {2: self.rungs.complete(self.level) if count is None else count}
        return tile.load(tensor, self.batch, self.head, block, *index, bounds=limits | edges(tensor, index))

    @property
    def left(self) -> Node:
        """The earlier block."""
        return mul(self.number, 2)

    @property
    def right(self) -> Node:
        """The later block."""
        return add(self.left, 1)

    def moved(self, block: Node, matrix: Node, transposed: bool = False) -> Node:
        """P, or Pᵀ, of a block of a delta rule times a matrix ``[d,e]``."""
        row, column = tile.iota(self.rows), tile.iota(self.dims)
        index = (column, row) if transposed else (row, column)
        move = self.load(self.rungs.moves(self.level), block, *index)
        found = tile.dot(move, tile.cast(matrix, move.dtype), self.dims, precision=self.rungs.own.schedule.precision)
        return tile.rename(found, self.rows, self.dims)

    def faded(self, block: Node, matrix: Node) -> Node:
        """The same where P is a number."""
        if not self.rungs.own.decays:
            return matrix
        return mul(matrix, power_of_two(self.load(self.rungs.fades(self.level), block)))

    def carried(self, block: Node, matrix: Node, transposed: bool = False) -> Node:
        """P, or Pᵀ, of a block times a matrix ``[d,e]``."""
        return self.moved(block, matrix, transposed) if self.rungs.own.delta else self.faded(block, matrix)


def pair(builder: tile.Builder, rungs: Rungs, level: int, cols: int) -> Pair:
    """The axes of a program on blocks of ``level``, with matrices of ``cols`` columns."""
    w = rungs.own.writes
    rows, dims = builder.axis("r", power(w.rows)), builder.axis("d", power(w.rows))
    columns = builder.axis("e", min(COLUMNS, power(cols)))
    tiles = -(-cols // columns.size)
    number, part = tile_number(rungs.own, tiles)
    return Pair(rungs, level, rows, dims, columns, tiles, number, column_of(part, columns))


def lower_states(rungs: Rungs, level: int) -> Program:
    """S of ``level`` + 1; one (block and tile of columns, head, batch) per grid point."""
    own, w = rungs.own, rungs.own.writes
    with tile.Builder() as builder:
        at = pair(builder, rungs, level, w.cols)
        below, above = rungs.states(level), rungs.states(level + 1)
        index = (tile.iota(at.dims), at.column)
        left, right = (at.load(below, block, *index) for block in (at.left, at.right))
        keep(at, above, rungs.read_states, index, add(at.carried(at.right, left), right))
        tensors = [below, above, rungs.read_states] + [rungs.moves(level)] * own.delta
        if rungs.fading:
            fades = [at.load(rungs.fades(level), block) for block in (at.left, at.right)]
            keep(at, rungs.fades(level + 1), rungs.read_fades, (), add(*fades))
            tensors += [rungs.fades(level), rungs.fades(level + 1), rungs.read_fades]
        return own.program(builder, f"climb{level}", tensors, grid(at, level + 1))


def lower_moves(rungs: Rungs, level: int) -> Program:
    """P of ``level`` + 1 of a delta rule."""
    own = rungs.own
    with tile.Builder() as builder:
        at = pair(builder, rungs, level, own.writes.rows)
        below, above = rungs.moves(level), rungs.moves(level + 1)
        index = (tile.iota(at.dims), at.column)
        keep(at, above, rungs.read_moves, index, at.moved(at.right, at.load(below, at.left, *index)))
        return own.program(builder, f"climb_moves{level}", [below, above, rungs.read_moves], grid(at, level + 1))


def grid(at: Pair, level: int) -> tuple[tile.Value, ...]:
    """One (block of a level and tile of columns, head, batch) per grid point."""
    return mul(ceil_shifted(tile.param(CHUNKS), level), at.tiles), at.rungs.own.writes.heads, tile.param("B")


def ceil_shifted(x: Node, by: int) -> Node:
    """ceil(x / 2^by)."""
    return tile.apply(Fn.TRUNCDIV, add(x, (1 << by) - 1), 1 << by)


def keep(at: Pair, tensor: Tensor, read: Tensor, index: tuple[Node, ...], value: Node) -> None:
    """Store a block one level up; where others read it, there too."""
    here = (at.batch, at.head)
    store_complete(at, tensor, (*here, at.number, *index), value)
    last = sub(mul(add(at.number, 1), 1 << at.level + 1), 1)
    even = sub(1, tile.apply(Fn.AND, at.number, 1))

    def also(_: Node) -> list[Node]:
        store(read, (*here, last, *index), value)
        return []

    when(even, [], also)


def store_complete(at: Pair, tensor: Tensor, index: tuple[Node, ...], value: Node) -> None:
    """Store a block, which has its own place whether complete or not."""
    tile.store(tensor, *index, value=tile.cast(value, tensor.dtype), bounds=edges(tensor, index[3:]))
