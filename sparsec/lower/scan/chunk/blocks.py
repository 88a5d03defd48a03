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

SQUARE = 8
"""Rows of a square that is solved one row after the other: each takes shuffles between the threads of a warp."""

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
    found: Blocks = {(b, b): x for b, x in enumerate(_diagonals([given[b, b] for b in range(count)], at, dtype))}
    for apart in range(1, count):
        for j in range(count - apart):
            i = j + apart
            total: Node | None = None
            for m in range(j, i):
                total = product(given[i, m], found[m, j], at, total, dtype)
            assert total is not None
            found[i, j] = mul(product(found[i, i], total, at, None, dtype), -1.0)
    return found


def _diagonals(given: list[Node], at: Space, dtype: str) -> list[Node]:
    """The inverses of the diagonal blocks: of squares of ``SQUARE`` by substitution, twice the size by products.

    Squares D on the diagonal of I + A leave A': (I + A)⁻¹ = D⁻¹ − D⁻¹ A' D⁻¹, where A' is only below two of them.
    """
    size, found = SQUARE, _squares([_within(SQUARE, a, at) for a in given], at)
    while size < BLOCK:
        between = [sub(_within(2 * size, a, at), _within(size, a, at)) for a in given]
        lower = [product(a, x, at, None, dtype) for a, x in zip(between, found, strict=True)]
        found = [sub(x, product(x, y, at, None, dtype)) for x, y in zip(found, lower, strict=True)]
        size *= 2
    return found


def _within(size: int, block: Node, at: Space) -> Node:
    """A block inside its squares on the diagonal."""
    if size >= BLOCK:
        return block
    return tile.apply(Fn.WHERE, _same(size, at), block, 0.0)


def _same(size: int, at: Space) -> Node:
    """Where a row and a column meet in a square on the diagonal."""
    row, column = (tile.apply(Fn.TRUNCDIV, tile.iota(axis), size) for axis in (at.rows, at.columns))
    return tile.apply(Fn.EQ, row, column)


def _squares(given: list[Node], at: Space) -> list[Node]:
    """The inverses of squares: with row i of them known, its share leaves all rows after it."""
    unit = tile.apply(Fn.WHERE, at.diagonal(), tile.full(1.0, at.rows, at.columns), 0.0)

    def visit(i: Node, *found: Node) -> Sequence[Node]:
        return [_without_row(i, a, x, at) for a, x in zip(given, found, strict=True)]

    return tile.loop(0, SQUARE - 1, 1, [unit] * len(given), visit)


def _without_row(i: Node, given: Node, found: Node, at: Space) -> Node:
    places = (tile.apply(Fn.TRUNCMOD, tile.iota(axis), SQUARE) for axis in (at.rows, at.columns))
    mine, ours = (tile.apply(Fn.EQ, place, i) for place in places)
    weights = tile.reduce("sum", tile.apply(Fn.WHERE, ours, given, 0.0), at.columns)
    row = tile.reduce("sum", tile.apply(Fn.WHERE, mine, found, 0.0), at.rows)
    return sub(found, _within(SQUARE, mul(weights, row), at))


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
