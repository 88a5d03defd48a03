"""What states answer, as products that know no state: W = T X_a and V' = T A_ak with T = (I − A_ab)⁻¹.

T − I is worked out by blocks of 16 tokens and rounded; what it multiplies is added in fp32. Of the delta rule it stands
for V' itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.scalars import add, mul
from sparsec.lower.scan.chunk import blocks as chunk_blocks
from sparsec.lower.scan.chunk.blocks import BLOCK
from sparsec.lower.scan.chunk.operands import product
from sparsec.lower.scan.chunk.parts import Chunk, power
from sparsec.lower.scan.keyed.prepare import chunk_of, grid
from sparsec.lower.scan.keyed.sides import Keyed
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor

_DIMS = 64
"""Key dims of a tile."""


def lower(keyed: Keyed) -> Program:
    """T − I; one (head, chunk, batch) per grid point."""
    own, met = keyed.own, keyed.met(keyed.columns[-1])
    with tile.Builder() as builder:
        at = chunk_blocks.space(builder, own)
        chunk = chunk_of(keyed)
        entries: chunk_blocks.Blocks = {}
        for i in range(own.chunk // BLOCK):
            for j in range(i + 1):
                place = (chunk_blocks.token(chunk, i, at.rows), add(tile.iota(at.columns), j * BLOCK))
                entries[i, j] = mul(tile.load(met, chunk.batch, chunk.head, *place), -1.0)
        chunk_blocks.store(keyed.solved, chunk, at, chunk_blocks.inverse(entries, at, own.writes.half), unit=True)
        return own.program(builder, "solve", [met, keyed.solved], grid(keyed))


def lower_answers(keyed: Keyed) -> Program:
    """W and, where vectors of their own erase, V'; one (head, chunk, batch) per grid point."""
    own, asking = keyed.own, keyed.asking
    assert asking is not None
    given, tensors = keyed.faded(asking), [keyed.solved, keyed.faded(asking), keyed.answers]
    with tile.Builder() as builder:
        c, t = builder.axis("c", own.chunk), builder.axis("t", own.chunk)
        d, n = builder.axis("d", min(_DIMS, power(own.writes.rows))), builder.axis("n", own.chunk)
        chunk = chunk_of(keyed)

        def visit(number: Node) -> Sequence[Node]:
            _solve(keyed, chunk, (c, t), given, keyed.answers, add(mul(number, d.size), tile.iota(d)))
            return []

        tile.loop(0, power(own.writes.rows) // d.size, 1, [], visit)
        if keyed.erases:
            met = keyed.met(keyed.columns[0])
            _solve(keyed, chunk, (c, t), met, keyed.passed, tile.iota(n))
            tensors += [met, keyed.passed]
        return own.program(builder, "answers", tensors, grid(keyed))


def _solve(keyed: Keyed, chunk: Chunk, axes: tuple[Axis, Axis], given: Tensor, made: Tensor, last: Node) -> None:
    """Some columns of ``given`` times T."""
    rows, middle = axes
    start = tile.cast(chunk.tile_of(given, rows, last), "float32")
    other = keyed.operands(chunk.tile_of(given, middle, last))
    solved = chunk.tile_of(keyed.solved, rows, tile.iota(middle))
    found = product(keyed.operands(solved), other, middle, start, keyed.own.schedule.precision)
    place = (chunk.batch, chunk.head, chunk.token(rows), last)
    tile.store(made, *place, value=tile.cast(found, made.dtype))
