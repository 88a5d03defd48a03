"""One program of a token recurrence: which state it holds, and how it reads what a token brings.

A program holds the columns ``e`` of one batch entry's and head's state, all of its rows ``d``. Rows and columns past
the state's own are zero and stay so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sparsec.lower.scalars import add, most, mul
from sparsec.plan.scan_specs import Operand, Writes
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor
from sparsec.tile.schedule import Schedule

LEAST = -200.0
"""A log-decay whose exponential is 0 in fp32; the functions of back ends need not know −inf."""


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
class Cell:
    """The state of one program.

    Attributes:
        tensors: what the program touched, in launch order.
    """

    writes: Writes
    rows: Axis
    cols: Axis
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def batch(self) -> Node:
        """The batch entry."""
        return tile.program_id(2)

    @property
    def head(self) -> Node:
        """The state's head."""
        return tile.program_id(1)

    @property
    def key_head(self) -> Node:
        """The head of the state's keys."""
        return tile.apply(Fn.TRUNCDIV, self.head, self.writes.sharers)

    @property
    def row(self) -> Node:
        """Row numbers [d]."""
        return tile.iota(self.rows)

    @property
    def column(self) -> Node:
        """Column numbers [e]."""
        return add(mul(tile.program_id(0), self.cols.size), tile.iota(self.cols))

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

    def state(self, tensor: Tensor, *place: Node | int) -> Node:
        """The state ``tensor[place, d, e]`` in fp32."""
        limits = self.bounds(len(place), True, True)
        return tile.cast(tile.load(self.tensor(tensor), *place, self.row, self.column, bounds=limits), "float32")

    def keep(self, tensor: Tensor, *place: Node | int, value: Node) -> None:
        """Store a state."""
        limits = self.bounds(len(place), True, True)
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
            return self.state(Tensor(self.writes.initial, "float32", shape), self.batch, 0, self.head)
        return self.state(Tensor(self.writes.initial, "float32", shape[1:]), 0, self.head)


def states_shape(writes: Writes) -> tuple[str | int, ...]:
    """Of initial and final states."""
    return ("B", 1, writes.heads, writes.rows, writes.cols)


def cell(builder: tile.Builder, writes: Writes, schedule: Schedule) -> Cell:
    """The state of a program, with axes d and e."""
    size = padded(writes.rows) if schedule.split_dims else writes.rows
    return Cell(writes, builder.axis("d", size), builder.axis("e", columns(writes, schedule)))


@dataclass(frozen=True, slots=True)
class Token:
    """What one token brings to a state, in fp32.

    Attributes:
        at: its number; one past the last brings zeros and leaves the state as it is, if ``bounded``.
        fade: exp of its log-decay, a scalar or [d]; None for 1.
        k, v, p: [d], [e], and beta k [d].
        beta: None for 1.
        erase: a and b [d], or None.
    """

    cell: Cell
    at: Node
    bounded: bool
    fade: Node | None
    k: Node
    v: Node
    p: Node
    beta: Node | None
    erase: tuple[Node, Node] | None

    def faded(self, state: Node) -> Node:
        """The state after the token's decay."""
        return state if self.fade is None else mul(self.fade, state)

    def answer(self, old: Node, faded: Node) -> Node | None:
        """aᵀR [e], what the erase term reads; None without one."""
        if self.erase is None:
            return None
        read = old if self.cell.writes.reads == "undecayed" else faded
        return tile.reduce("sum", mul(self.erase[0], read), self.cell.rows)

    def written(self, faded: Node, answer: Node | None) -> Node:
        """The state after the token's write."""
        if answer is None or self.erase is None:
            return add(faded, mul(self.p, self.v))
        if self.erase[1] is self.p:
            return add(faded, mul(self.p, add(self.v, answer)))
        return add(add(faded, mul(self.erase[1], answer)), mul(self.p, self.v))

    def after(self, old: Node) -> Node:
        """The state after the token."""
        faded = self.faded(old)
        return self.written(faded, self.answer(old, faded))


def token(own: Cell, at: Node, bounded: bool = False) -> Token:
    """Read what a token brings."""
    w = own.writes

    def read(operand: Operand, rows: bool, cols: bool = False) -> Node:
        return vector(own, operand, w.heads, at, own.head, rows, cols, bounded)

    k = vector(own, w.k, w.key_heads or w.heads, at, own.key_head, True, False, bounded)
    v = read(w.v, False, True)
    beta = None if w.beta is None else read(w.beta, False)
    fade = None
    if w.decay is not None:
        fade = tile.apply(Fn.EXP, most(read(w.decay, w.decay_kind == "key"), LEAST))
    p = k if beta is None else mul(beta, k)
    erase = None
    if w.erase is not None:
        erase = read(w.erase[0], True), read(w.erase[1], True)
    elif w.rule == "delta":
        erase = tile.apply(Fn.NEG, k), p
    return Token(own, at, bounded, fade, k, v, p, beta, erase)


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
    own: Cell, operand: Operand, heads: int, at: Node, head: Node, rows: bool, cols: bool, bounded: bool
) -> Node:
    """One token's and head's part of an operand in fp32: a scalar, [d] or [e]."""
    tensor, index, limits = place_of(own, operand, heads, rows, cols, bounded)
    return tile.cast(tile.load(own.tensor(tensor), own.batch, at, head, *index, bounds=limits), "float32")


def parameters(writes: Writes, *more: str) -> list[tuple[str, str]]:
    """Launch parameters."""
    return [(name, "int32") for name in dict.fromkeys(["B", "TQ", "TK", "q_offset", writes.length, *more])]


def grid(writes: Writes, schedule: Schedule) -> Sequence[tile.Value]:
    """One (tile of columns, head, batch) per grid point."""
    return (tile.const(tiles(writes, schedule)), tile.const(writes.heads), tile.param("B"))


def renamed(operand: Operand, name: str, dtype: str = "float32") -> Operand:
    """An operand of the same shape elsewhere."""
    return replace(operand, name=name, dtype=dtype)
