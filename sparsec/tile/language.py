"""The tile language: one interned node type; a value's shape is a set of named axes, never positions.

A ``Program`` runs once per point of its grid. Values are SSA; effects (stores, loops that store) are listed in order.
Both back ends print this language and ``sparsec.tile.interpreter`` gives it meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto


class TileOp(Enum):
    """What a node computes: sources -> result; attrs."""

    CONST = auto()  # () -> scalar; attrs: value
    PARAM = auto()  # () -> int32 or int64 or float32 scalar launch argument; attrs: name
    PROGRAM_ID = auto()  # () -> int32 scalar; attrs: grid dimension
    IOTA = auto()  # () -> int32 over one axis: 0, 1, …
    FULL = auto()  # () -> constant tile over its axes; attrs: value
    MAP = auto()  # (x, …) -> elementwise over the union of axes; attrs: Fn
    MASK_IF = auto()  # (condition, mask, x, other) -> x where the scalar condition is false, else where(mask, x, other)
    LOAD = auto()  # (index…, bound…) -> tile; attrs: Access
    STORE = auto()  # (index…, bound…, value) -> effect; attrs: Access, serial number
    DOT = auto()  # (a, b[, acc]) -> fp32; sums over one shared axis; attrs: axis, precision
    REDUCE = auto()  # (x) -> x without an axis; attrs: kind (sum | max | min; a GPU may drop a NaN in these two), axis
    SCAN = auto()  # (x) -> inclusive running sum along an axis; attrs: axis
    RENAME = auto()  # (x) -> the same tile under another axis of equal size; attrs: old, new
    CAST = auto()  # (x) -> x rounded to another dtype
    TOP_INSERT = auto()  # (keys[.., k], new[.., n]) -> the k largest int64 keys, descending; attrs: axis k, axis n
    LOOP = auto()  # (lo, hi, init…) -> carried values; attrs: LoopBody
    INDEX = auto()  # () -> the int32 loop variable; attrs: loop number
    CARRY = auto()  # () -> a carried value at the start of an iteration; attrs: loop number, position
    RESULT = auto()  # (loop) -> a carried value after the loop; attrs: position


@dataclass(frozen=True, slots=True)
class Axis:
    """A named extent known when the program is printed. ``rank`` orders the axes of a tile in printed code."""

    name: str
    size: int
    rank: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A buffer in memory. Its last stride is 1; the others are launch parameters named ``<name>_s<dim>`` (elements).

    Attributes:
        dtype: float32, float16, bfloat16, int32 or int64.
        shape: the extent of each dimension, as a parameter's name or a number; used by descriptors and checks.
    """

    name: str
    dtype: str
    shape: tuple[str | int, ...]

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shape)


@dataclass(frozen=True, slots=True)
class Access:
    """How a load or store addresses memory.

    The node's sources are one index per dimension of the tensor, then one scalar bound per *bounded* dimension
    (an index at or past its bound is outside; indices are never negative where they are read), then, for a store,
    the value. Outside: a load gives ``other`` (if None: an unspecified but readable number), a store writes nothing.
    An index is a scalar, ``scalar + iota`` (a box), or any int32 tile (a gather).

    Attributes:
        evict: which of a GPU's cache leaves first: "last" is what a later launch reads soon, "first" what none reads
            again; "" says nothing.
    """

    tensor: Tensor
    bounded: tuple[int, ...] = ()
    other: float | None = 0.0
    atomic: bool = False
    evict: str = ""


@dataclass(frozen=True, slots=True)
class LoopBody:
    """A counted loop ``for index in range(lo, hi, step)`` with explicit carried values, as in scf.for.

    Attributes:
        effects: stores and effectful loops of one iteration, in order.
        stages: software-pipelining depth asked of the back end; None leaves it alone.
    """

    number: int
    step: int
    index: Node
    carries: tuple[Node, ...]
    yields: tuple[Node, ...]
    effects: tuple[Node, ...]
    stages: int | None


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Node:
    """One value or effect.

    Attributes:
        free: the loops (by number) on whose iteration the value depends; an op's region is the innermost of them.
        serial: creation order within its program; printers emit in this order.
    """

    op: TileOp
    args: tuple[Node, ...]
    attrs: tuple[object, ...]
    dtype: str
    axes: tuple[Axis, ...]
    free: frozenset[int]
    serial: int = field(compare=False)

    def __repr__(self) -> str:
        names = ",".join(axis.name for axis in self.axes)
        return f"%{self.serial}={self.op.name.lower()}({', '.join(f'%{a.serial}' for a in self.args)})[{names}]"


@dataclass(frozen=True, slots=True)
class Program:
    """A kernel: what one grid point loads, computes and stores.

    Attributes:
        tensors: buffers in launch order; outputs are those that a STORE names.
        params: integer or float scalars in launch order as (name, dtype); strides come after, see ``stride_params``.
        grid: one scalar node of params per grid dimension, at most three.
        effects: the top-level effects in order.
    """

    name: str
    tensors: tuple[Tensor, ...]
    params: tuple[tuple[str, str], ...]
    grid: tuple[Node, ...]
    effects: tuple[Node, ...]

    @property
    def stride_params(self) -> tuple[str, ...]:
        """The stride arguments, ``<tensor>_s<dim>`` for every dimension but the last."""
        return tuple(f"{t.name}_s{d}" for t in self.tensors for d in range(t.rank - 1))


EMPTY_KEY = -(2**63)
"""The int64 rank key of a slot that holds nothing: its id decodes to -1.

A key orders candidates by forced first, then higher score, then lower id. From the top bit down it holds: 1 bit, clear
where the candidate is forced; 32 bits of ``monotone(score)``; 31 bits of ``0x7fffffff - id``. With ``bits`` the int32
view of ``score + 0.0``, ``monotone = bits ^ ((bits >> 31) | 0x80000000)`` as an unsigned number. So
``RANK(score, id) = EMPTY_KEY | monotone << 31 | (0x7fffffff - id)`` and ``XOR(key, EMPTY_KEY)`` makes a candidate
forced. ``RANK_SCORE`` and ``RANK_ID`` ignore the top bit; an id field of zero decodes to -1.
"""


def access_of(node: Node) -> Access:
    """How a LOAD or STORE addresses memory."""
    access = node.attrs[0]
    assert isinstance(access, Access)
    return access
