"""States before each segment: segments scanned side by side, then their transitions combined one after another.

A segment takes a state M to P M + L. L comes of a zero state; P is the decay over the segment or, for delta rules, a
matrix ``[D,D]``, which comes of a unit matrix under the same writes with values 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk_parts import Chunk, Chunked, column_limit, halves, power, power_of_two, segment_bounds
from sparsec.lower.scan.chunk_state import Walk, walk
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor

_COMBINED = 32
"""Columns of a program that combines transitions."""


def lower_ends(own: Chunked) -> Program:
    """L of every segment, and P beside it; one (segment, tile of columns, batch and head) per grid point."""
    w = own.writes
    extra = power(w.rows) // own.columns if own.delta else 0
    with tile.Builder() as builder:
        segment, batch, head = tile.program_id(0), *_batch_and_head(own)
        at = walk(builder, own, tile.program_id(1), own.tiles + extra)
        first, last = segment_bounds(own, segment)

        def visit(number: Node, state: Node, total: Node) -> Sequence[Node]:
            chunk = Chunk(own, batch, head, number)
            keys = at.keys(chunk)
            after = at.after(chunk, keys, at.written(chunk, keys, state), state)
            return [after, add(total, chunk.total()) if own.decays else total]

        state, total = tile.loop(first, last, 1, [_unit(at), tile.const(0.0)], visit)
        row = tile.iota(at.axes.dims)
        limits: dict[int, tile.Value] = {3: w.rows} if at.row_limit else {}
        tile.store(own.ends, batch, head, segment, row, at.column, value=state, bounds=limits)
        tensors = [*at.tensors(), own.ends]
        if own.decays and not own.delta:
            tile.store(own.fades, batch, head, segment, value=total)
            tensors.append(own.fades)
        grid = (own.splits, own.tiles + extra, mul(tile.param("B"), w.heads))
        return own.program(builder, "ends", tensors, grid)


def _batch_and_head(own: Chunked) -> tuple[Node, Node]:
    """Of the grid's last dimension."""
    both = tile.program_id(2)
    return tile.apply(Fn.TRUNCDIV, both, own.writes.heads), tile.apply(Fn.TRUNCMOD, both, own.writes.heads)


def _unit(at: Walk) -> Node:
    """0 in the columns of values, the unit matrix in those after them."""
    nothing = tile.full(0.0, at.axes.dims, at.axes.columns)
    if not at.own.delta:
        return nothing
    diagonal = tile.apply(Fn.EQ, sub(at.column, at.own.tiles * at.own.columns), tile.iota(at.axes.dims))
    return tile.apply(Fn.WHERE, diagonal, tile.full(1.0, *nothing.axes), nothing)


def lower_starts(own: Chunked, final: str | None) -> Program:
    """The states before each segment, and the last ones; one (tile of columns, head, batch) per grid point."""
    w = own.writes
    with tile.Builder() as builder:
        size = min(_COMBINED, power(w.cols))
        rows, dims, columns = (
            builder.axis("r", power(w.rows)),
            builder.axis("d", power(w.rows)),
            builder.axis("e", size),
        )
        tiles = -(-w.cols // size)
        head, batch = tile.program_id(1), tile.program_id(2)
        column, row = add(mul(tile.program_id(0), size), tile.iota(columns)), tile.iota(dims)
        limits = _limits(own, dims, tiles * size)
        state, tensors = initial_state(own, batch, head, row, column, limits)

        def visit(segment: Node, state: Node) -> Sequence[Node]:
            tile.store(own.starts, batch, head, segment, row, column, value=state, bounds=dict(limits))
            added = tile.load(own.ends, batch, head, segment, row, column, bounds=dict(limits))
            return [add(_carried(own, (batch, head, segment), rows, dims, state), added)]

        (last,) = tile.loop(0, own.splits, 1, [state], visit)
        tensors += [own.ends, own.starts] + [own.fades] * (own.decays and not own.delta)
        if final is not None:
            tensors.append(store_final(own, final, (batch, head, row, column), last, limits))
        return own.program(builder, "starts", tensors, (tiles, w.heads, tile.param("B")))


def _limits(own: Chunked, dims: Axis, reach: int) -> dict[int, tile.Value]:
    """Bounds of the last two dimensions of a state per segment."""
    w = own.writes
    found = {3: column_limit(w.rows, dims.size), 4: column_limit(w.cols, reach)}
    return {dim: limit for dim, limit in found.items() if limit}


def _carried(own: Chunked, at: tuple[Node, Node, Node], rows: Axis, dims: Axis, state: Node) -> Node:
    """P M of one segment."""
    if not own.delta:
        return mul(state, power_of_two(tile.load(own.fades, *at))) if own.decays else state
    w = own.writes
    row, column = tile.iota(rows), add(tile.iota(dims), own.tiles * own.columns)
    limits: dict[int, tile.Value] = {3: w.rows} if rows.size > w.rows else {}
    transition = tile.load(own.ends, *at, row, column, bounds=limits)
    return tile.rename(_product(halves(transition, w.k.dtype), halves(state, w.k.dtype), dims), rows, dims)


def _product(left: list[Node], right: list[Node], over: Axis) -> Node:
    """The product of sums of halves, without the smallest term."""
    found: Node | None = None
    for i, a in enumerate(left):
        for b in right[: len(right) - i]:
            found = tile.dot(a, b, over, found)
    assert found is not None
    return found


def initial_state(
    own: Chunked, batch: Node, head: Node, row: Node, column: Node, limits: dict[int, tile.Value]
) -> tuple[Node, list[Tensor]]:
    """The states before the first token, and the tensor that they come from; ``limits`` are those of a segment's."""
    w = own.writes
    if w.initial is None:
        return tile.full(0.0, row.axes[0], column.axes[0]), []
    shape: tuple[str | int, ...] = ("B", w.heads, w.rows, w.cols)
    tensor = Tensor(w.initial, "float32", shape if w.initial_batched else shape[1:])
    place = (batch, head, row, column) if w.initial_batched else (head, row, column)
    less = 5 - len(place)
    return tile.load(tensor, *place, bounds={dim - less: limit for dim, limit in limits.items()}), [tensor]


def store_final(
    own: Chunked, name: str, place: tuple[Node, Node, Node, Node], state: Node, limits: dict[int, tile.Value]
) -> Tensor:
    """Write the states after the last token; the tensor that has them."""
    w = own.writes
    tensor = Tensor(name, "float32", ("B", w.heads, w.rows, w.cols))
    tile.store(tensor, *place, value=state, bounds={dim - 1: limit for dim, limit in limits.items()})
    return tensor
