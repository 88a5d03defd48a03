"""The gradient of decays that are numbers: what was found inside each chunk, and all that passes it whole.

Chunk c is passed by what a chunk further on reads of a block at or before c's own (chunks c' > c with c' >> j = c >> j
at level j), and, where it is in a right block, by what that keeps of the left one.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.fenwick.back import Back
from sparsec.lower.fenwick.rungs import bit, end, shifted, when
from sparsec.lower.scalars import add, least
from sparsec.lower.scan.chunk.parts import CHUNKS, Chunk
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program

AT_ONCE = 32
"""Chunks whose gains are added up together."""


def lower(b: Back) -> Program:
    """One (chunk, head, batch) per grid point."""
    own, w, spec = b.own, b.own.writes, b.spec
    assert spec.grad_decay is not None
    with tile.Builder() as builder:
        tokens, later = builder.axis("n", own.chunk), builder.axis("p", AT_ONCE)
        chunk = Chunk(own, tile.program_id(2), tile.program_id(1), tile.program_id(0))

        def level(number: Node, total: Node) -> Sequence[Node]:
            total = add(total, _read_across(b, chunk, number, later))
            return when(bit(chunk.number, number), [total], lambda nil, x: [_kept(b, chunk, add(number, nil), x)])

        (through,) = tile.loop(0, b.rungs.outer, 1, [tile.const(0.0)], level)
        found = add(tile.load(b.among, chunk.batch, chunk.head, chunk.token(tokens)), through)
        made, bounds = own.tensor(spec.grad_decay, w.heads), {1: tile.param(w.length)}
        place = (chunk.batch, chunk.token(tokens), chunk.head)
        tile.store(made, *place, value=tile.cast(found, made.dtype), bounds=dict(bounds))
        grid = (tile.param(CHUNKS), w.heads, tile.param("B"))
        return own.program(builder, "through", [b.among, b.gains, b.kept, made], grid)


def _read_across(b: Back, chunk: Chunk, level: Node, later: Axis) -> Node:
    """What the chunks after this one in its block of a level read before the block."""
    block_end = tile.apply(Fn.SHL, add(shifted(chunk.number, level), 1), level)
    last = least(block_end, tile.param(CHUNKS))

    def visit(first: Node, total: Node) -> Sequence[Node]:
        at = add(first, tile.iota(later))
        found = tile.load(b.gains, chunk.batch, chunk.head, level, at, bounds={3: last})
        return [add(total, tile.reduce("sum", found, later))]

    return tile.loop(add(chunk.number, 1), last, AT_ONCE, [tile.const(0.0)], visit)[0]


def _kept(b: Back, chunk: Chunk, level: Node, total: Node) -> Node:
    """What the chunk's block of a level, which is a right one, keeps of its neighbour."""
    for part in range(b.tiles):
        total = add(total, tile.load(b.kept, chunk.batch, chunk.head, part, end(chunk.number, level)))
    return total
