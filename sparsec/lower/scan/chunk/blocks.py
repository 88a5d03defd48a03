"""Square matrices of one chunk as blocks of 16 tokens: unit lower-triangular inverses, and storing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk.operands import halves
from sparsec.lower.scan.chunk.parts import Chunk, Chunked, power
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


def space(builder: tile.Builder, own: Chunked, most: int = 2**20) -> Space:
    """The axes, in printed order; at ``most`` so many key dims."""
    rows, dims = builder.axis("r", BLOCK), builder.axis("d", min(most, power(own.writes.rows)))
    return Space(rows, dims, builder.axis("s", BLOCK), builder.axis("t", BLOCK))


def token(chunk: Chunk, block: int, axis: Axis) -> Node:
    """Positions of a block's tokens."""
    return add(add(mul(chunk.number, chunk.own.chunk), block * BLOCK), tile.iota(axis))


def inverse(given: Blocks, at: Space, dtype: str) -> Blocks:
    """(I + A)⁻¹ of a strictly lower A: T_ij = −T_ii Σ_m A_im T_mj; products of halves of ``dtype``."""
    count = 1 + max(i for i, _ in given)
    found: Blocks = {(b, b): x for b, x in enumerate(_diagonals([given[b, b] for b in range(count)], at))}
    for apart in range(1, count):
        for j in range(count - apart):
            i = j + apart
            total: Node | None = None
            for m in range(j, i):
                total = product(given[i, m], found[m, j], at, total, dtype)
            assert total is not None
            found[i, j] = mul(product(found[i, i], total, at, None, dtype), -1.0)
    return found


def _diagonals(given: list[Node], at: Space) -> list[Node]:
    """The inverses of the diagonal blocks: with row i of the inverse known, its share leaves all rows after it."""
    unit = tile.apply(Fn.WHERE, at.diagonal(), tile.full(1.0, at.rows, at.columns), 0.0)

    def visit(i: Node, *found: Node) -> Sequence[Node]:
        return [_without_row(i, a, x, at) for a, x in zip(given, found, strict=True)]

    return tile.loop(0, BLOCK - 1, 1, [unit] * len(given), visit)


def _without_row(i: Node, given: Node, found: Node, at: Space) -> Node:
    mine, ours = (tile.apply(Fn.EQ, tile.iota(axis), i) for axis in (at.rows, at.columns))
    weights = tile.reduce("sum", tile.apply(Fn.WHERE, ours, given, 0.0), at.columns)
    row = tile.reduce("sum", tile.apply(Fn.WHERE, mine, found, 0.0), at.rows)
    return sub(found, mul(weights, row))


def product(a: Node, b: Node, at: Space, acc: Node | None, dtype: str) -> Node:
    """The product of two blocks as halves of ``dtype``, added to ``acc``."""
    left = [tile.rename(x, at.columns, at.middle) for x in halves(a, dtype)]
    right = [tile.rename(x, at.rows, at.middle) for x in halves(b, dtype)]
    return product_of_halves(left, right, at.middle, acc)


def product_of_halves(left: list[Node], right: list[Node], over: Axis, acc: Node | None = None) -> Node:
    """The product of sums of halves, without the smallest term."""
    found = acc
    for i, a in enumerate(left):
        for b in right[: len(right) - i]:
            found = tile.dot(a, b, over, found)
    assert found is not None
    return found


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
