"""Square matrices of one chunk as blocks of 16 tokens: unit lower-triangular inverses, and storing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk_parts import Chunk, Chunked, power
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor

BLOCK = 16

Blocks = dict[tuple[int, int], Node]
"""``[r,s]`` tiles by (row of blocks, column of blocks), none above the diagonal."""


@dataclass(frozen=True, slots=True)
class Space:
    """The axes of a program that works on blocks: tokens of a row, key dims, tokens of a column, and one in between."""

    rows: Axis
    dims: Axis
    columns: Axis
    middle: Axis

    def below(self) -> Node:
        """Where a column comes before a row of a block on the diagonal."""
        return tile.apply(Fn.LT, tile.iota(self.columns), tile.iota(self.rows))

    def diagonal(self) -> Node:
        """Where a column is its row."""
        return tile.apply(Fn.EQ, tile.iota(self.columns), tile.iota(self.rows))


def space(builder: tile.Builder, own: Chunked) -> Space:
    """The axes, in printed order."""
    rows, dims = builder.axis("r", BLOCK), builder.axis("d", power(own.writes.rows))
    return Space(rows, dims, builder.axis("s", BLOCK), builder.axis("t", BLOCK))


def token(chunk: Chunk, block: int, axis: Axis) -> Node:
    """Positions of a block's tokens."""
    return add(add(mul(chunk.number, chunk.own.chunk), block * BLOCK), tile.iota(axis))


def inverse(given: Blocks, at: Space) -> Blocks:
    """(I + A)⁻¹ of a strictly lower A: T_ij = −T_ii Σ_m A_im T_mj."""
    count = 1 + max(i for i, _ in given)
    found: Blocks = {(b, b): x for b, x in enumerate(_diagonals([given[b, b] for b in range(count)], at))}
    for apart in range(1, count):
        for j in range(count - apart):
            i = j + apart
            total: Node | None = None
            for m in range(j, i):
                total = product(given[i, m], found[m, j], at, total)
            assert total is not None
            found[i, j] = mul(product(found[i, i], total, at, None), -1.0)
    return found


def _diagonals(given: list[Node], at: Space) -> list[Node]:
    """The inverses of the diagonal blocks: row i is e_i minus row i of A times the rows before it."""
    unit = tile.apply(Fn.WHERE, at.diagonal(), tile.full(1.0, at.rows, at.columns), 0.0)

    def visit(i: Node, *found: Node) -> Sequence[Node]:
        return [_next_row(i, a, x, at) for a, x in zip(given, found, strict=True)]

    return tile.loop(1, BLOCK, 1, [unit] * len(given), visit)


def _next_row(i: Node, given: Node, found: Node, at: Space) -> Node:
    mine = tile.apply(Fn.EQ, tile.iota(at.rows), i)
    row = tile.reduce("sum", tile.apply(Fn.WHERE, mine, given, 0.0), at.rows)
    weights = tile.rename(row, at.columns, at.rows)
    known = tile.reduce("sum", mul(found, weights), at.rows)
    return tile.apply(Fn.WHERE, mine, sub(found, known), found)


def product(a: Node, b: Node, at: Space, acc: Node | None) -> Node:
    """The product of two blocks, added to ``acc``."""
    left, right = tile.rename(a, at.columns, at.middle), tile.rename(b, at.rows, at.middle)
    return tile.dot(left, right, at.middle, acc, "tf32x3")


def store(tensor: Tensor, chunk: Chunk, at: Space, blocks: Blocks, unit: bool) -> None:
    """All blocks of a chunk, zeros above the diagonal, and on it where ``unit`` leaves it out."""
    nothing, count = tile.full(0.0, at.rows, at.columns, dtype=tensor.dtype), chunk.own.chunk // BLOCK
    for i in range(count):
        for j in range(count):
            value = nothing
            if j <= i:
                block = tile.apply(Fn.WHERE, at.diagonal(), 0.0, blocks[i, j]) if i == j and unit else blocks[i, j]
                value = tile.cast(block, tensor.dtype)
            place = (chunk.batch, chunk.head, token(chunk, i, at.rows), add(tile.iota(at.columns), j * BLOCK))
            tile.store(tensor, *place, value=value)
