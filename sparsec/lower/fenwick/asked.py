"""What the chunks that read a block ask of it: sums over the chunks of the block after it.

    of S_j:  Σ X_jᵀ (scale gate_j dO)        of P_j:  Σ X_jᵀ dX_{j+1}

X_j of a delta rule was stored; of others it is e^Γ Q and the decay since the block's end.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.fenwick.back import Back
from sparsec.lower.fenwick.leaf import store
from sparsec.lower.fenwick.rungs import column_of, edges, tile_number
from sparsec.lower.scalars import add, least, mul
from sparsec.lower.scan.chunk.operands import scaled
from sparsec.lower.scan.chunk.parts import CHUNKS, Chunk, Chunked, column_limit, power, power_of_two
from sparsec.lower.scan.chunk.state import Axes, axes
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program


def lower_reads(b: Back) -> Program:
    """The states' part; one (end of a block, head and tile of columns, 1, batch) per grid point."""
    own, w, rungs = b.own, b.own.writes, b.rungs
    with tile.Builder() as builder:
        number, head, part = _spread(own, own.tiles)
        a = axes(builder, own, "dcne")
        column, limit = column_of(part, a.columns), column_limit(w.cols, own.tiles * own.columns)
        level, first, last = _readers(b, number)

        def visit(at: Node, total: Node, fade: Node) -> Sequence[Node]:
            chunk = Chunk(own, tile.program_id(2), head, at)
            asked = _asked(b, chunk, a, level)
            do = chunk.rows(b.grad_out, chunk.head, a.queries, column, limit)
            weight = mul(rungs.weight(chunk, a.queries, add(level, rungs.inner)), b.scale)
            if rungs.fading:
                weight = mul(weight, power_of_two(add(chunk.sums(a.queries), fade)))
                fade = add(fade, chunk.total())
            value = tile.cast(scaled(tile.cast(do, "float32"), weight), w.k.dtype)
            return [tile.dot(asked, value, a.queries, total, own.schedule.precision), fade]

        zero = tile.full(0.0, a.dims, a.columns)
        total, _ = tile.loop(first, last, 1, [zero, tile.const(0.0)], visit)
        place = (tile.program_id(2), head, number, tile.iota(a.dims), column)
        store(b.reads, place, total)
        tensors = [b.walks if own.delta else rungs.queries, b.grad_out, rungs.gate, b.reads]
        tensors += [own.sums] * rungs.fading
        grid = (mul(tile.param(CHUNKS), own.tiles * w.heads), 1, tile.param("B"))
        return own.program(builder, "reads", tensors, grid)


def lower_passes(b: Back) -> Program:
    """The transitions' part of a delta rule."""
    own, w = b.own, b.own.writes
    with tile.Builder() as builder:
        a = axes(builder, own, "dcne")
        tiles = -(-power(w.rows) // own.columns)
        number, head, part = _spread(own, tiles)
        column = column_of(part, a.columns)
        level, first, last = _readers(b, number)

        def visit(at: Node, total: Node) -> Sequence[Node]:
            chunk = Chunk(own, tile.program_id(2), head, at)
            place = (chunk.batch, chunk.head, level, chunk.token(a.queries), column)
            pull = tile.load(b.pulls, *place, bounds=edges(b.pulls, [column], 4))
            return [tile.dot(_asked(b, chunk, a, level), pull, a.queries, total, own.schedule.precision)]

        (total,) = tile.loop(first, last, 1, [tile.full(0.0, a.dims, a.columns)], visit)
        place = (tile.program_id(2), head, number, tile.iota(a.dims), column)
        store(b.passes, place, total)
        grid = (mul(tile.param(CHUNKS), tiles * w.heads), 1, tile.param("B"))
        return own.program(builder, "passes", [b.walks, b.pulls, b.passes], grid)


def _spread(own: Chunked, tiles: int) -> tuple[Node, Node, Node]:
    """The end of a block, the head and the tile of columns: heads side by side, so that none ends with a long chain."""
    number, rest = tile_number(own, own.writes.heads * tiles)
    return number, tile.apply(Fn.TRUNCDIV, rest, tiles), tile.apply(Fn.TRUNCMOD, rest, tiles)


def _readers(b: Back, number: Node) -> tuple[Node, Node, Node]:
    """The level of the block that ends before chunk ``number`` + 1, and the chunks that read it."""
    first = add(number, 1)
    size = tile.apply(Fn.AND, first, tile.apply(Fn.SUB, 0, first))
    level: Node = tile.const(0)
    for n in range(1, b.rungs.outer):
        level = add(level, tile.apply(Fn.WHERE, tile.apply(Fn.LE, 1 << n, size), tile.const(1), tile.const(0)))
    return level, first, least(add(first, size), tile.param(CHUNKS))


def _asked(b: Back, chunk: Chunk, a: Axes, level: Node) -> Node:
    """X of a level ``[c,d]``, without decays where those are numbers."""
    w = b.own.writes
    if not b.own.delta:
        limit = column_limit(w.rows, a.dims.size)
        return chunk.rows(b.rungs.queries, chunk.head, a.queries, tile.iota(a.dims), limit)
    row = tile.iota(a.dims)
    place = (chunk.batch, chunk.head, level, chunk.token(a.queries), row)
    return tile.load(b.walks, *place, bounds=edges(b.walks, [row], 4))
