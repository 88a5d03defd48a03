"""What every two chunks make of a zero state and of a unit matrix, of a delta rule; the first of them by itself, too.

    S = (K e^{Γ_C − Γ} beta)ᵀ T V                     P = e^{Γ_C} I − (K e^{Γ_C − Γ} beta)ᵀ T (e^Γ K)
    S <- e^{Γ_C} S + (K e^{Γ_C − Γ} beta)ᵀ T (V − e^Γ K S)                  of the second, on top of the first

with T = (I + A)⁻¹, and P on top of another without V. Of other rules T is I and P a number; their chunks are worked on
in groups of four.
"""

from __future__ import annotations

from sparsec.lower.fenwick.rungs import Rungs, bit, column_of, edges, tile_number, when
from sparsec.lower.scalars import add, least, mul, sub
from sparsec.lower.scan.chunk.operands import halves, scaled, times
from sparsec.lower.scan.chunk.parts import CHUNKS, Chunk, column_limit, power, power_of_two
from sparsec.lower.scan.chunk.state import Axes, axes
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor


def lower_states(rungs: Rungs) -> Program:
    """S; one (two chunks and tile of columns, head, batch) per grid point."""
    own, w = rungs.own, rungs.own.writes
    with tile.Builder() as builder:
        number, part = tile_number(own, own.tiles)
        a = axes(builder, own, "cdne")
        column = column_of(part, a.columns)
        limit, (left, right) = column_limit(w.cols, own.tiles * own.columns), two(rungs, number)

        def values(chunk: Chunk) -> Node:
            return chunk.rows(rungs.values, chunk.head, a.keys, column, limit)

        state = made(rungs, left, a, solved(rungs, left, a, values(left)))
        keep(left, rungs.read_states, (tile.iota(a.dims), column), state)
        if rungs.first < rungs.outer:
            whole = after(rungs, right, a, state, tile.cast(values(right), "float32"))
            keep_two(rungs.states(1), rungs.read_states, left, number, (tile.iota(a.dims), column), whole)
        tensors = [rungs.keys, rungs.values, *of_writes(rungs), rungs.read_states]
        tensors += [rungs.states(1)] * (rungs.first < rungs.outer)
        return own.program(builder, "leaf", tensors, grid(own.tiles, w.heads))


def lower_moves(rungs: Rungs, apart: bool) -> Program:
    """P, with ``apart`` that of second chunks too; one (two chunks and tile of columns, head, batch) per grid point."""
    own, w = rungs.own, rungs.own.writes
    with tile.Builder() as builder:
        a, number, column, tiles = _columns_of_moves(builder, rungs)
        index, (left, right) = (tile.iota(a.dims), column), two(rungs, number)
        move = _move(rungs, left, a, column, tiles)
        keep(left, rungs.read_moves, index, move)
        tensors = [rungs.keys, *of_writes(rungs), rungs.read_moves]
        if rungs.first < rungs.outer:
            keep_two(rungs.moves(1), rungs.read_moves, left, number, index, after(rungs, right, a, move))
            tensors.append(rungs.moves(1))
            if apart:
                tensors.append(_second(rungs, left, right, a, column, tiles))
        return own.program(builder, "leaf_moves", tensors, grid(tiles, w.heads))


def lower_seconds(rungs: Rungs) -> Program:
    """P of second chunks alone, where the forward's programs have made all else."""
    with tile.Builder() as builder:
        a, number, column, tiles = _columns_of_moves(builder, rungs)
        tensors = [rungs.keys, *of_writes(rungs), _second(rungs, *two(rungs, number), a, column, tiles)]
        return rungs.own.program(builder, "seconds", tensors, grid(tiles, rungs.own.writes.heads))


def _columns_of_moves(builder: tile.Builder, rungs: Rungs) -> tuple[Axes, Node, Node, int]:
    """The axes of a program on transitions, the number of its two chunks, its columns, and the tiles of columns."""
    tiles = -(-power(rungs.own.writes.rows) // rungs.own.columns)
    number, part = tile_number(rungs.own, tiles)
    a = axes(builder, rungs.own, "cdne")
    return a, number, column_of(part, a.columns), tiles


def _second(rungs: Rungs, left: Chunk, right: Chunk, a: Axes, column: Node, tiles: int) -> Tensor:
    """Store P of the second of two chunks; the tensor that it is stored to."""
    place = (left.batch, left.head, add(left.number, 1), tile.iota(a.dims), column)
    store(rungs.moves(0), place, _move(rungs, right, a, column, tiles))
    return rungs.moves(0)


def two(rungs: Rungs, number: Node) -> tuple[Chunk, Chunk]:
    """Two chunks; a second one past the last stands for that, in a block that is not complete."""
    left = mul(number, 2)
    right = least(add(left, 1), sub(tile.param(CHUNKS), 1))
    one, other = (Chunk(rungs.own, tile.program_id(2), tile.program_id(1), n) for n in (left, right))
    return one, other


def grid(tiles: int, heads: int) -> tuple[tile.Value, ...]:
    """One (two chunks and tile of columns, head, batch) per grid point."""
    return mul(tile.apply(Fn.TRUNCDIV, add(tile.param(CHUNKS), 1), 2), tiles), heads, tile.param("B")


def _move(rungs: Rungs, chunk: Chunk, a: Axes, column: Node, tiles: int) -> Node:
    """Some columns of P of a chunk."""
    own = rungs.own
    limit = column_limit(own.writes.rows, tiles * own.columns)
    keys = chunk.rows(rungs.keys, chunk.head, a.keys, column, limit)
    lifted = scaled(keys, power_of_two(chunk.sums(a.keys)) if own.decays else None)
    diagonal = tile.apply(Fn.EQ, column, tile.iota(a.dims))
    whole: Node | float = power_of_two(chunk.total()) if own.decays else 1.0
    kept = mul(tile.apply(Fn.WHERE, diagonal, tile.full(1.0, a.dims, a.columns), 0.0), whole)
    return made(rungs, chunk, a, mul(solved(rungs, chunk, a, lifted), -1.0), kept)


def after(rungs: Rungs, chunk: Chunk, a: Axes, start: Node, values: Node | None = None) -> Node:
    """P start, and what the chunk writes of values, if any, in fp32 ``[d,e]``."""
    own, w = rungs.own, rungs.own.writes
    keys = chunk.rows(rungs.keys, chunk.head, a.keys, tile.iota(a.dims), column_limit(w.rows, a.dims.size))
    known = tile.dot(keys, tile.cast(start, w.k.dtype), a.dims, precision=own.schedule.precision)
    if own.decays:
        known = mul(known, power_of_two(chunk.sums(a.keys)))
        start = mul(start, power_of_two(chunk.total()))
    written = mul(known, -1.0) if values is None else sub(values, known)
    return made(rungs, chunk, a, solved(rungs, chunk, a, written), start)


def of_writes(rungs: Rungs) -> list[Tensor]:
    """What is read beside keys and values."""
    own = rungs.own
    return [own.sums] * own.decays + [own.solved] * own.delta + own.betas()


def solved(rungs: Rungs, chunk: Chunk, a: Axes, x: Node) -> Node:
    """T x ``[n,e]``, in fp32 where T is not the unit matrix."""
    if not rungs.own.delta:
        return x
    left = chunk.tile_of(rungs.own.solved, a.queries, tile.iota(a.keys))
    start = tile.rename(tile.cast(x, "float32"), a.keys, a.queries)
    x = tile.cast(x, rungs.own.writes.k.dtype)
    return tile.rename(tile.dot(left, x, a.keys, start, rungs.own.schedule.precision), a.queries, a.keys)


def made(rungs: Rungs, chunk: Chunk, a: Axes, written: Node, start: Node | None = None) -> Node:
    """(K e^{Γ_C − Γ} beta)ᵀ times what is written, in fp32 ``[d,e]``."""
    own, w = rungs.own, rungs.own.writes
    keys = chunk.rows(rungs.keys, chunk.head, a.keys, tile.iota(a.dims), column_limit(w.rows, a.dims.size))
    factors = (chunk.left(a.keys), chunk.beta(a.keys))
    parts = halves(times(written, *factors) or written, w.k.dtype) if own.delta else [scaled(written, *factors)]
    for part in parts:
        start = tile.dot(keys, part, a.keys, start, own.schedule.precision)
    assert start is not None
    return start


def keep(chunk: Chunk, read: Tensor, index: tuple[Node, ...], value: Node) -> None:
    """Store a chunk's block that others read."""
    store(read, (chunk.batch, chunk.head, chunk.number, *index), value)


def keep_two(tensor: Tensor, read: Tensor, left: Chunk, number: Node, index: tuple[Node, ...], value: Node) -> None:
    """Store the block of two chunks; where others read it, there too."""
    store(tensor, (left.batch, left.head, number, *index), value)
    place = (left.batch, left.head, add(left.number, 1), *index)
    when(sub(1, bit(number, 0)), [], lambda _: _also(read, place, value))


def _also(read: Tensor, index: tuple[Node, ...], value: Node) -> list[Node]:
    store(read, index, value)
    return []


def store(tensor: Tensor, index: tuple[Node, ...], value: Node) -> None:
    """Store a block's matrix or number, without what is padded; blocks past the last one are left out."""
    limits: dict[int, tile.Value] = {2: tile.param(str(tensor.shape[2]), declare=True)}
    tile.store(tensor, *index, value=tile.cast(value, tensor.dtype), bounds=limits | edges(tensor, index[3:]))
