"""States before each segment: segments scanned side by side, then their transitions combined one after another.

A segment takes a state M to P M + L. L comes of a zero state; P is the decay over the segment or, for delta rules, a
matrix ``[D,D]``, which comes of a unit matrix under the same writes with values 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsec.lower.per_head import PerHead
from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk import resets
from sparsec.lower.scan.chunk.blocks import product_of_halves
from sparsec.lower.scan.chunk.operands import halves
from sparsec.lower.scan.chunk.parts import SEGMENTS, Chunk, Chunked, column_limit, power, power_of_two
from sparsec.lower.scan.chunk.place import Place
from sparsec.lower.scan.chunk.state import Walk, walk
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor

_COMBINED = 16
"""Columns of a program that combines transitions."""

_AHEAD = 4
"""Segments that a program combines by decays alone loads ahead."""


def lower_ends(own: Chunked, first: bool, last: bool) -> Program:
    """L of every segment, and P beside it; one (segment, tile of columns, batch and head) per grid point.

    What nobody needs is not worked out: P of the first segment unless ``first``, and the last one's unless ``last``.
    """
    w = own.writes
    extra = power(w.rows) // own.columns if own.delta else 0
    with tile.Builder() as builder:
        place = Place(own, own.tiles + extra, w.heads)
        segment, batch, head = place.segment, place.batch, place.head
        at = walk(builder, own, place.number, place.tiles)
        start, end = needed(place, first, last)

        def visit(number: Node, state: Node, total: Node) -> Sequence[Node]:
            chunk = Chunk(own, batch, head, number)
            state = resets.entered(chunk, state, (row, at.column), at.limits)
            keys = at.keys(chunk)
            _, after = at.passed(chunk, keys, state)
            decay = chunk.total if own.decays else None
            return [after, resets.passed(chunk, total, decay) if own.fading else total]

        def visit_back(i: Node, state: Node, total: Node) -> Sequence[Node]:
            chunk = Chunk(own, batch, head, from_last(start, end, i))
            after = at.added(chunk, at.keys(chunk), at.values(chunk), state, total)
            return [after, add(total, chunk.total()) if own.decays else total]

        row, visits = tile.iota(at.axes.dims), visit_back if sums_up(own) else visit
        state, total = tile.loop(start, end, 1, [_unit(at), tile.const(0.0)], visits)
        limits: dict[int, tile.Value] = {3: w.rows} if at.row_limit else {}
        tile.store(own.ends, batch, head, segment, row, at.column, value=state, bounds=limits)
        tensors = [*at.tensors(passed=True), own.ends, *resets.tensors(own, w.initial)]
        if own.fading:
            tile.store(own.fades, batch, head, segment, value=total)
            tensors.append(own.fades)
        return own.program(builder, "ends", tensors, place.grid)


def of_one_group(own: Chunked) -> Chunked:
    """As programs of one group of four warps where those of outputs have two: of these, with fewer tiles, two fit.

    Not where vectors of their own erase, whose tiles fill a processor.
    """
    s, w = own.schedule, own.writes
    if own.columns < 128 or s.warps != 8 or w.cols % own.columns or w.erase is not None:
        return own
    return replace(own, schedule=replace(s, value_block=own.columns // 2, warps=4))


def sums_up(own: Chunked) -> bool:
    """Whether what a segment leaves is a sum over its tokens, taken from the last chunk to the first.

    The program after this one begins with the first chunks, which are read from the cache then.
    """
    return not own.delta and own.runs is None


def from_last(start: Node, end: Node, i: Node) -> Node:
    """The i-th number of those from ``start`` on to ``end``, counted from the last."""
    return sub(add(start, sub(end, 1)), i)


def needed(place: Place, first: bool, last: bool) -> tuple[Node, Node]:
    """The chunks that a program of ``lower_ends`` walks over: none where nobody needs what it makes."""
    own = place.own
    start, end = place.bounds
    if not last:
        end = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, place.segment, sub(tile.param(SEGMENTS), 1)), start, end)
    if not first and place.tiles > own.tiles:
        transition = tile.apply(Fn.LE, own.tiles, place.number)
        end = tile.apply(Fn.WHERE, tile.apply(Fn.LT, place.segment, tile.cast(transition, "int32")), start, end)
    return start, end


def _unit(at: Walk) -> Node:
    """0 in the columns of values, the unit matrix in those after them."""
    nothing = tile.full(0.0, at.axes.dims, at.axes.columns)
    if not at.own.delta:
        return nothing
    diagonal = tile.apply(Fn.EQ, sub(at.column, at.own.tiles * at.own.columns), tile.iota(at.axes.dims))
    return tile.apply(Fn.WHERE, diagonal, tile.full(1.0, *nothing.axes), nothing)


@dataclass(frozen=True, slots=True)
class Combining(PerHead):
    """One (tile of columns, head, batch) of a program that combines the transitions of all segments.

    Attributes:
        limits: bounds of the last two dimensions of a state per segment.
    """

    own: Chunked
    rows: Axis
    dims: Axis
    columns: Axis
    tiles: int

    @property
    def row(self) -> Node:
        """Indices of the state's rows."""
        return tile.iota(self.dims)

    @property
    def column(self) -> Node:
        """Indices of the state's columns."""
        return add(mul(tile.program_id(0), self.columns.size), tile.iota(self.columns))

    @property
    def limits(self) -> dict[int, tile.Value]:
        """Where they are padded."""
        w = self.own.writes
        found = {3: column_limit(w.rows, self.dims.size), 4: column_limit(w.cols, self.tiles * self.columns.size)}
        return {dim: limit for dim, limit in found.items() if limit}

    def carried(self, at: tuple[Node, Node, Node], state: Node, backwards: bool = False) -> Node:
        """P M of one segment, or Pᵀ M."""
        own, rows, dims = self.own, self.rows, self.dims
        if not own.delta:
            fade = tile.load(own.fades, *at, *[tile.iota(dims)] * own.keyed) if own.fading else None
            return state if fade is None else mul(state, power_of_two(fade))
        w, (left, right) = own.writes, (dims, rows) if backwards else (rows, dims)
        limits: dict[int, tile.Value] = {3: w.rows} if rows.size > w.rows else {}
        column = add(tile.iota(right), own.tiles * own.columns)
        transition = halves(tile.load(own.ends, *at, tile.iota(left), column, bounds=limits), w.half)
        return tile.rename(product_of_halves(transition, halves(state, w.half), dims), rows, dims)

    @property
    def stages(self) -> int | None:
        """Segments under way at once; where they are multiplied, the schedule says it."""
        return None if self.own.delta else _AHEAD

    def tensors(self) -> list[Tensor]:
        """What transitions are read from."""
        return [self.own.ends] * self.own.delta + [self.own.fades] * self.own.fading


def combining(builder: tile.Builder, own: Chunked) -> Combining:
    """The axes of a program that combines transitions."""
    w = own.writes
    size = min(_COMBINED, power(w.cols))
    rows, dims = builder.axis("r", power(w.rows)), builder.axis("d", power(w.rows))
    return Combining(own, rows, dims, builder.axis("e", size), -(-w.cols // size))


def lower_starts(own: Chunked, final: str | None, first: bool) -> Program:
    """The states before each segment, and the last ones; one (tile of columns, head, batch) per grid point.

    Unless something passes the ``first`` segment, what comes after it is what it makes of zeros.
    """
    with tile.Builder() as builder:
        at = combining(builder, own)
        state, tensors = initial_state(own, at.batch, at.head, at.row, at.column, at.limits)
        last = sub(tile.param(SEGMENTS), 1)

        def store(segment: Node, state: Node) -> None:
            place = (at.batch, at.head, segment, at.row, at.column)
            tile.store(own.starts, *place, value=state, bounds=dict(at.limits))

        def made(segment: Node) -> Node:
            return tile.load(own.ends, at.batch, at.head, segment, at.row, at.column, bounds=dict(at.limits))

        def after(segment: Node, state: Node) -> Node:
            return add(at.carried((at.batch, at.head, segment), state), made(segment))

        def begin(_: Node, state: Node) -> Sequence[Node]:
            state = made(tile.const(0))
            store(tile.const(1), state)
            return [state]

        def visit(segment: Node, state: Node) -> Sequence[Node]:
            state = after(segment, state)
            store(add(segment, 1), state)
            return [state]

        store(tile.const(0), state)
        if not first:
            (state,) = tile.loop(0, tile.apply(Fn.LT, 0, last), 1, [state], begin)
        (state,) = tile.loop(0 if first else 1, last, 1, [state], visit, at.stages)
        tensors += [own.ends, own.starts, *at.tensors()]
        if final is not None and own.runs is None:
            place = (at.batch, at.head, at.row, at.column)
            tensors.append(store_final(own, final, place, after(last, state), at.limits))
        return own.program(builder, "starts", tensors, (at.tiles, own.writes.heads, tile.param("B")))


def initial_state(
    own: Chunked, batch: Node, head: Node, row: Node, column: Node, limits: dict[int, tile.Value]
) -> tuple[Node, list[Tensor]]:
    """The states before the first token, and the tensor that they come from; ``limits`` are those of a segment's."""
    w = own.writes
    if w.initial is None or own.runs is not None:
        return tile.full(0.0, row.axes[0], column.axes[0]), []
    tensor, place = whole_states(own, w.initial), (batch, 0, head, row, column)
    if w.initial_batched:
        return tile.load(tensor, *place, bounds=dict(limits)), [tensor]
    tensor = Tensor(tensor.name, tensor.dtype, tensor.shape[1:])
    return tile.load(tensor, *place[1:], bounds={dim - 1: limit for dim, limit in limits.items()}), [tensor]


def whole_states(own: Chunked, name: str) -> Tensor:
    """States of all heads as they come and go; the 1 counts parts."""
    w = own.writes
    return Tensor(name, "float32", ("B", 1, w.heads, w.rows, w.cols))


def store_final(
    own: Chunked, name: str, place: tuple[Node, Node, Node, Node], state: Node, limits: dict[int, tile.Value]
) -> Tensor:
    """Write the states after the last token; the tensor that has them."""
    tensor = whole_states(own, name)
    tile.store(tensor, place[0], 0, *place[1:], value=state, bounds=dict(limits))
    return tensor
