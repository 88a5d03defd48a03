"""One program of a token recurrence: which state it holds, and where the tokens of its walk lie.

A program holds the columns ``e`` of one batch entry's and head's state, all of its rows ``d``. Rows and columns past
the state's own are zero and stay so. Of a bank with a route it holds one part, and walks over its run or, where
``runs`` is None, over all tokens. Past the last part comes one that stays zero: it answers for slots that hold none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sparsec.lower.per_head import PerHead
from sparsec.lower.pointwise.rows import L2_EPSILON
from sparsec.lower.scalars import add, mul
from sparsec.lower.scan.runs import ROOM, SEGMENTS, Runs
from sparsec.plan.states.scan_specs import Operand, Writes
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor
from sparsec.tile.schedule import Schedule


def columns(writes: Writes, schedule: Schedule) -> int:
    """The columns of a program's state."""
    wanted = min(schedule.value_block or writes.cols, writes.cols)
    return padded(wanted) if schedule.split_dims else wanted


def tiles(writes: Writes, schedule: Schedule) -> int:
    """The programs that share a state's columns."""
    return -(-writes.cols // columns(writes, schedule))


def padded(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length()


@dataclass(slots=True)
class Cell(PerHead):
    """The state of one program.

    Attributes:
        tiles: programs that share its columns.
        runs: a route turned around.
        tensors: what the program touched, in launch order.
    """

    writes: Writes
    rows: Axis
    cols: Axis
    tiles: int = 1
    runs: Runs | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def key_head(self) -> Node:
        """The head of the state's keys."""
        return tile.apply(Fn.TRUNCDIV, self.head, self.writes.sharers)

    @property
    def row(self) -> Node:
        """Row numbers [d]."""
        return tile.iota(self.rows)

    @property
    def share(self) -> Node:
        """Which of the programs that share its columns this is."""
        if self.writes.route is None:
            return tile.program_id(0)
        return tile.apply(Fn.TRUNCMOD, tile.program_id(0), self.tiles)

    @property
    def part(self) -> Node:
        """The part of the bank."""
        if self.writes.route is None:
            return tile.const(0)
        return tile.apply(Fn.TRUNCDIV, tile.program_id(0), self.tiles)

    @property
    def column(self) -> Node:
        """Column numbers [e]."""
        return add(mul(self.share, self.cols.size), tile.iota(self.cols))

    def tensor(self, made: Tensor) -> Tensor:
        """A tensor of the program, which joins its arguments."""
        return self.tensors.setdefault(made.name, made)

    def bounds(self, at: int, rows: bool, cols: bool) -> dict[int, tile.Value]:
        """Bounds of dims from ``at`` on, where rows and columns are padded."""
        limits: dict[int, tile.Value] = {}
        if rows and self.rows.size != self.writes.rows:
            limits[at] = self.writes.rows
        if cols and self.writes.cols % self.cols.size:
            limits[at + rows] = self.writes.cols
        return limits

    def state(self, tensor: Tensor, *place: Node | int, part: int | None = None) -> Node:
        """The state ``tensor[place, d, e]`` in fp32; ``part`` is the dimension that counts parts, if one does."""
        limits = self.bounds(len(place), True, True) | self._last_part(part)
        return tile.cast(tile.load(self.tensor(tensor), *place, self.row, self.column, bounds=limits), "float32")

    def _last_part(self, dim: int | None) -> dict[int, tile.Value]:
        return {dim: self.writes.parts} if dim is not None and self.writes.route is not None else {}

    def keep(self, tensor: Tensor, *place: Node | int, value: Node, part: int | None = None) -> None:
        """Store a state; that of a part past the last is lost."""
        limits = self.bounds(len(place), True, True) | self._last_part(part)
        tile.store(self.tensor(tensor), *place, self.row, self.column, value=value, bounds=limits)

    def zero(self) -> Node:
        """A state of zeros."""
        return tile.full(0.0, self.rows, self.cols)

    def first(self) -> Node:
        """The state before the first token."""
        if self.writes.initial is None:
            return self.zero()
        shape = states_shape(self.writes)
        if self.writes.initial_batched:
            return self.state(Tensor(self.writes.initial, "float32", shape), self.batch, self.part, self.head, part=1)
        return self.state(Tensor(self.writes.initial, "float32", shape[1:]), self.part, self.head, part=0)


def states_shape(writes: Writes) -> tuple[str | int, ...]:
    """Of initial and final states."""
    return ("B", writes.parts, writes.heads, writes.rows, writes.cols)


def cell(builder: tile.Builder, writes: Writes, schedule: Schedule, runs: Runs | None = None) -> Cell:
    """The state of a program, with axes d and e."""
    size = padded(writes.rows) if schedule.split_dims else writes.rows
    own = Cell(writes, builder.axis("d", size), builder.axis("e", columns(writes, schedule)), tiles(writes, schedule))
    own.runs = runs
    return own


def place_of(
    own: Cell, operand: Operand, heads: int, rows: bool, cols: bool, bounded: bool
) -> tuple[Tensor, tuple[Node, ...], dict[int, tile.Value]]:
    """A tensor ``[B,N,heads]``, ``[B,N,heads,D]`` or ``[B,N,heads,DV]``, the indices of its last dim, and bounds."""
    w = own.writes
    last: tuple[int, ...] = (w.rows,) if rows else (w.cols,) if cols else ()
    limits = own.bounds(3, rows, cols)
    if bounded:
        limits[1] = tile.param(w.length)
    index = (own.row,) if rows else (own.column,) if cols else ()
    return Tensor(operand.name, operand.dtype, ("B", w.length, heads, *last)), index, limits


def vector(
    own: Cell,
    operand: Operand,
    heads: int,
    at: Node,
    head: Node,
    rows: bool,
    cols: bool,
    bounded: bool,
) -> Node:
    """One token's and head's part of an operand in fp32: a scalar, [d] or [e]."""
    tensor, index, limits = place_of(own, operand, heads, rows, cols, bounded)
    x = tile.cast(tile.load(own.tensor(tensor), own.batch, at, head, *index, bounds=limits), "float32")
    return mul(x, inverse_length(x, own.rows)) if operand.unit else x


def inverse_length(x: Node, over: Axis) -> Node:
    """What brings rows to length 1."""
    return tile.apply(Fn.RSQRT, add(tile.reduce("sum", mul(x, x), over), tile.const(L2_EPSILON)))


def parameters(writes: Writes, runs: Runs | None = None, *more: str) -> list[tuple[str, str]]:
    """Launch parameters."""
    turned = (ROOM, SEGMENTS) if runs is not None else ()
    return [(name, "int32") for name in dict.fromkeys(["B", "TQ", "TK", "q_offset", writes.length, *turned, *more])]


def grid(writes: Writes, schedule: Schedule) -> Sequence[tile.Value]:
    """One (part and tile of columns, head, batch) per grid point."""
    parts = writes.parts + 1 if writes.route is not None else 1
    return (tile.const(parts * tiles(writes, schedule)), tile.const(writes.heads), tile.param("B"))
