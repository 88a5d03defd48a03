"""What every chunk by itself makes of a zero state and of a unit matrix, of a delta rule: blocks of level 0.

    S = (K e^{Γ_C − Γ} beta)ᵀ T V        P = e^{Γ_C} I − (K e^{Γ_C − Γ} beta)ᵀ T (e^Γ K)

with T = (I + A)⁻¹. Of other rules T is I and P a number; their chunks are worked on in groups.
"""

from __future__ import annotations

from sparsec.lower.fenwick.rungs import Rungs, bit, column_of, edges, place, tile_number, when
from sparsec.lower.scalars import add, mul
from sparsec.lower.scan.chunk_parts import CHUNKS, Chunk, column_limit, halves, power, power_of_two, scaled, times
from sparsec.lower.scan.chunk_state import Axes, axes
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor


def lower_states(rungs: Rungs) -> Program:
    """S of a delta rule; one (chunk and tile of columns, head, batch) per grid point."""
    own, w = rungs.own, rungs.own.writes
    with tile.Builder() as builder:
        number, part = tile_number(own, own.tiles)
        chunk, a = Chunk(own, tile.program_id(2), tile.program_id(1), number), axes(builder, own, "cdne")
        column, limit = column_of(part, a.columns), column_limit(w.cols, own.tiles * own.columns)
        values = chunk.rows(rungs.values, chunk.head, a.keys, column, limit)
        state = made(rungs, chunk, a, solved(rungs, chunk, a, values))
        tensors = [rungs.keys, rungs.values, *of_writes(rungs), rungs.states(0), rungs.read_states]
        keep(rungs, chunk, rungs.states(0), rungs.read_states, (tile.iota(a.dims), column), state)
        grid = (mul(tile.param(CHUNKS), own.tiles), w.heads, tile.param("B"))
        return own.program(builder, "leaf", tensors, grid)


def lower_moves(rungs: Rungs) -> Program:
    """P of a delta rule; one (chunk and tile of columns, head, batch) per grid point."""
    own, w = rungs.own, rungs.own.writes
    with tile.Builder() as builder:
        a = axes(builder, own, "cdne")
        tiles = -(-power(w.rows) // own.columns)
        number, part = tile_number(own, tiles)
        chunk, column = Chunk(own, tile.program_id(2), tile.program_id(1), number), column_of(part, a.columns)
        keys = chunk.rows(rungs.keys, chunk.head, a.keys, column, column_limit(w.rows, tiles * own.columns))
        lifted = scaled(keys, power_of_two(chunk.sums(a.keys)) if own.decays else None)
        diagonal = tile.apply(Fn.EQ, column, tile.iota(a.dims))
        whole: Node | float = power_of_two(chunk.total()) if own.decays else 1.0
        kept = mul(tile.apply(Fn.WHERE, diagonal, tile.full(1.0, a.dims, a.columns), 0.0), whole)
        move = made(rungs, chunk, a, mul(solved(rungs, chunk, a, lifted), -1.0), kept)
        keep(rungs, chunk, rungs.moves(0), rungs.read_moves, (tile.iota(a.dims), column), move)
        tensors = [rungs.keys, *of_writes(rungs), rungs.moves(0), rungs.read_moves]
        grid = (mul(tile.param(CHUNKS), tiles), w.heads, tile.param("B"))
        return own.program(builder, "leaf_moves", tensors, grid)


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


def keep(rungs: Rungs, chunk: Chunk, tensor: Tensor, read: Tensor, index: tuple[Node, ...], value: Node) -> None:
    """Store a block of level 0; where others read it, there too."""
    store(tensor, (*place(chunk, chunk.number), *index), value)
    odd = bit(chunk.number, 0)
    when(add(1, mul(odd, -1)), [], lambda _: _also(read, (*place(chunk, chunk.number), *index), value))


def _also(read: Tensor, index: tuple[Node, ...], value: Node) -> list[Node]:
    store(read, index, value)
    return []


def store(tensor: Tensor, index: tuple[Node, ...], value: Node) -> None:
    """Store a block's matrix or number, without what is padded; blocks past the last one are left out."""
    limits: dict[int, tile.Value] = {2: tile.param(str(tensor.shape[2]), declare=True)}
    tile.store(tensor, *index, value=tile.cast(value, tensor.dtype), bounds=limits | edges(tensor, index[3:]))
