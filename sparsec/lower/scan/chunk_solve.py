"""L = (I + A)⁻¹ − I of every chunk of a delta rule, A strictly lower: A_ij = beta_j (k_i·k_j) e^{Γ_i − Γ_j}.

What L is multiplied with is added to the product in fp32, so that rounding L costs little.

Blocks of 16 tokens: those on the diagonal by substitution, row after row; the others from them by small products.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk_parts import CHUNKS, Chunk, Chunked, column_limit, power, power_of_two
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor

_BLOCK = 16


def lower(own: Chunked) -> Program:
    """One (chunk, head, batch) per grid point."""
    w = own.writes
    with tile.Builder() as builder:
        rows, dims = builder.axis("r", _BLOCK), builder.axis("d", power(w.rows))
        columns, middle = builder.axis("s", _BLOCK), builder.axis("t", _BLOCK)
        chunk = Chunk(own, tile.program_id(2), tile.program_id(1), tile.program_id(0))
        solver = _Solver(own, chunk, rows, dims, columns, middle)
        solver.store(solver.inverse())
        tensors = [own.tensor(w.k, w.heads, w.rows), own.solved] + [own.sums] * own.decays
        tensors += [own.tensor(w.beta, w.heads)] if w.beta is not None else []
        return own.program(builder, "solve", tensors, (tile.param(CHUNKS), w.heads, tile.param("B")))


class _Solver:
    """The blocks of one chunk's matrix, by (row of blocks, column of blocks)."""

    def __init__(self, own: Chunked, chunk: Chunk, rows: Axis, dims: Axis, columns: Axis, middle: Axis) -> None:
        self.own, self.chunk = own, chunk
        self.rows, self.dims, self.columns, self.middle = rows, dims, columns, middle
        self.count = own.chunk // _BLOCK
        self.keys = [self._keys(b) for b in range(self.count)]
        self.given = {(i, j): self._entries(i, j) for i in range(self.count) for j in range(i + 1)}

    def _token(self, block: int, axis: Axis) -> Node:
        first = add(mul(self.chunk.number, self.own.chunk), block * _BLOCK)
        return add(first, tile.iota(axis))

    def _keys(self, block: int) -> Node:
        w = self.own.writes
        tensor: Tensor = self.own.tensor(w.k, w.heads, w.rows)
        bounds: dict[int, tile.Value] = {1: tile.param(w.length)}
        if limit := column_limit(w.rows, self.dims.size):
            bounds[3] = limit
        place = (self.chunk.batch, self._token(block, self.rows), self.chunk.head, tile.iota(self.dims))
        return tile.load(tensor, *place, bounds=bounds)

    def _per_token(self, tensor: Tensor, block: int, axis: Axis) -> Node:
        """The decay sums or write strengths of a block's tokens."""
        token = self._token(block, axis)
        if tensor == self.own.sums:
            return tile.load(tensor, self.chunk.batch, self.chunk.head, token)
        bounds = {1: tile.param(self.own.writes.length)}
        return tile.cast(tile.load(tensor, self.chunk.batch, token, self.chunk.head, bounds=dict(bounds)), "float32")

    def _entries(self, i: int, j: int) -> Node:
        """Block (i, j) of A ``[r,s]``."""
        w, own = self.own.writes, self.own
        other = tile.rename(self.keys[j], self.rows, self.columns)
        found = tile.dot(self.keys[i], other, self.dims, precision=own.schedule.precision)
        if own.decays:
            since = sub(self._per_token(own.sums, i, self.rows), self._per_token(own.sums, j, self.columns))
            found = mul(found, power_of_two(since))
        if w.beta is not None:
            found = mul(found, self._per_token(own.tensor(w.beta, w.heads), j, self.columns))
        if i > j:
            return found
        below = tile.apply(Fn.LT, tile.iota(self.columns), tile.iota(self.rows))
        return tile.apply(Fn.WHERE, below, found, 0.0)

    def diagonals(self) -> list[Node]:
        """The inverses of the diagonal blocks: row i is e_i minus row i of A times the rows before it."""
        given = [self.given[b, b] for b in range(self.count)]
        r, s = tile.iota(self.rows), tile.iota(self.columns)
        unit = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, r, s), tile.full(1.0, self.rows, self.columns), 0.0)

        def visit(i: Node, *found: Node) -> Sequence[Node]:
            return [self._next_row(i, a, x) for a, x in zip(given, found, strict=True)]

        return tile.loop(1, _BLOCK, 1, [unit] * self.count, visit)

    def _next_row(self, i: Node, given: Node, found: Node) -> Node:
        mine = tile.apply(Fn.EQ, tile.iota(self.rows), i)
        row = tile.reduce("sum", tile.apply(Fn.WHERE, mine, given, 0.0), self.rows)
        weights = tile.rename(row, self.columns, self.rows)
        known = tile.reduce("sum", mul(found, weights), self.rows)
        return tile.apply(Fn.WHERE, mine, sub(found, known), found)

    def inverse(self) -> dict[tuple[int, int], Node]:
        """The blocks on and below the diagonal: T_ij = −T_ii Σ_m A_im T_mj."""
        found = {(b, b): x for b, x in enumerate(self.diagonals())}
        for apart in range(1, self.count):
            for j in range(self.count - apart):
                i = j + apart
                total: Node | None = None
                for m in range(j, i):
                    total = self._product(self.given[i, m], found[m, j], total)
                assert total is not None
                found[i, j] = mul(self._product(found[i, i], total, None), -1.0)
        return found

    def _product(self, a: Node, b: Node, acc: Node | None) -> Node:
        left, right = tile.rename(a, self.columns, self.middle), tile.rename(b, self.rows, self.middle)
        return tile.dot(left, right, self.middle, acc, "tf32x3")

    def store(self, blocks: dict[tuple[int, int], Node]) -> None:
        """All blocks, without the unit diagonal; zeros above it."""
        nothing = tile.full(0.0, self.rows, self.columns, dtype=self.own.solved.dtype)
        unit = tile.apply(Fn.EQ, tile.iota(self.rows), tile.iota(self.columns))
        for i in range(self.count):
            for j in range(self.count):
                value = nothing
                if j <= i:
                    block = tile.apply(Fn.WHERE, unit, 0.0, blocks[i, j]) if i == j else blocks[i, j]
                    value = tile.cast(block, self.own.solved.dtype)
                column = add(tile.iota(self.columns), j * _BLOCK)
                place = (self.chunk.batch, self.chunk.head, self._token(i, self.rows), column)
                tile.store(self.own.solved, *place, value=value)
