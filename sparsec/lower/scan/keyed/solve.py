"""What states answer, as products that know no state: W = T X_a and V' = T A_ak with T = (I − A_ab)⁻¹.

By blocks of 16 tokens, T in fp32; of the delta rule T − I is kept in place of V', and what it multiplies is added.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.scalars import add, mul
from sparsec.lower.scan import chunk_blocks
from sparsec.lower.scan.chunk_blocks import BLOCK, Blocks, Space
from sparsec.lower.scan.chunk_parts import CHUNKS, Chunk, power
from sparsec.lower.scan.keyed.sides import Keyed, Side
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor

_DIMS = 32
"""Key dims of a tile."""


def lower(keyed: Keyed) -> Program:
    """One (chunk, head, batch) per grid point."""
    own, asking = keyed.own, keyed.asking
    assert asking is not None
    with tile.Builder() as builder:
        rows, dims = builder.axis("r", BLOCK), builder.axis("d", min(_DIMS, power(own.writes.rows)))
        at = Space(rows, dims, builder.axis("s", BLOCK), builder.axis("t", BLOCK))
        chunk = Chunk(own, tile.program_id(2), tile.program_id(1), tile.program_id(0))
        erased, written = keyed.columns[-1], keyed.columns[0]
        entries = _blocks(keyed.met(erased), chunk, at)
        solved = chunk_blocks.inverse({place: mul(x, -1.0) for place, x in entries.items()}, at)
        chunk_blocks.store(keyed.solved, chunk, at, solved, unit=True)
        _wide(keyed, chunk, at, solved, asking)
        tensors = [keyed.met(erased), keyed.faded(asking), keyed.solved, keyed.answers]
        if keyed.erases:
            chunk_blocks.store(
                keyed.passed, chunk, at, _times(solved, _blocks(keyed.met(written), chunk, at), at), False
            )
            tensors += [keyed.met(written), keyed.passed]
        return own.program(builder, "solve", tensors, (tile.param(CHUNKS), own.writes.heads, tile.param("B")))


def _count(chunk: Chunk) -> int:
    return chunk.own.chunk // BLOCK


def _blocks(tensor: Tensor, chunk: Chunk, at: Space) -> Blocks:
    """A square matrix of the chunk."""
    return {
        (i, j): _block(tensor, chunk, i, at.rows, add(tile.iota(at.columns), j * BLOCK))
        for i in range(_count(chunk))
        for j in range(i + 1)
    }


def _block(tensor: Tensor, chunk: Chunk, number: int, rows: Axis, last: Node) -> Node:
    found = tile.load(tensor, chunk.batch, chunk.head, chunk_blocks.token(chunk, number, rows), last)
    return tile.cast(found, "float32")


def _times(left: Blocks, right: Blocks, at: Space) -> Blocks:
    """A product of lower-triangular matrices."""
    found: Blocks = {}
    for i, j in left:
        total: Node | None = None
        for m in range(j, i + 1):
            total = chunk_blocks.product(left[i, m], right[m, j], at, total)
        assert total is not None
        found[i, j] = total
    return found


def _wide(keyed: Keyed, chunk: Chunk, at: Space, solved: Blocks, asking: Side) -> None:
    """W, a tile of key dims after another."""
    count = _count(chunk)

    def visit(number: Node) -> Sequence[Node]:
        dim = add(mul(number, at.dims.size), tile.iota(at.dims))
        given = [_block(keyed.faded(asking), chunk, m, at.middle, dim) for m in range(count)]
        for i in range(count):
            total: Node | None = None
            for m in range(i + 1):
                left = tile.rename(solved[i, m], at.columns, at.middle)
                total = tile.dot(left, given[m], at.middle, total, "tf32")
            assert total is not None
            place = (chunk.batch, chunk.head, chunk_blocks.token(chunk, i, at.rows), dim)
            tile.store(keyed.answers, *place, value=tile.cast(total, keyed.answers.dtype))
        return []

    tile.loop(0, power(keyed.own.writes.rows) // at.dims.size, 1, [], visit)
