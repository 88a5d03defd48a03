"""L = (I + A)⁻¹ − I of every chunk of a delta rule, A strictly lower: A_ij = beta_j (k_i·k_j) e^{Γ_i − Γ_j}.

What L is multiplied with is added to the product in fp32, so that rounding L costs little. Blocks of 16 tokens: those
on the diagonal by substitution, row after row; the others from them by small products.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.scalars import mul, sub
from sparsec.lower.scan import chunk_blocks
from sparsec.lower.scan.chunk_blocks import BLOCK, Blocks, Space
from sparsec.lower.scan.chunk_parts import CHUNKS, Chunk, Chunked, column_limit, power_of_two
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program


def lower(own: Chunked) -> Program:
    """One (chunk, head, batch) per grid point."""
    w = own.writes
    with tile.Builder() as builder:
        at = chunk_blocks.space(builder, own)
        chunk = Chunk(own, tile.program_id(2), tile.program_id(1), tile.program_id(0))
        solved = chunk_blocks.inverse(_Entries(own, chunk, at).all(), at)
        chunk_blocks.store(own.solved, chunk, at, solved, unit=True)
        tensors = [own.tensor(w.k, w.heads, w.rows), own.solved] + [own.sums] * own.decays
        tensors += [own.tensor(w.beta, w.heads)] if w.beta is not None else []
        return own.program(builder, "solve", tensors, (tile.param(CHUNKS), w.heads, tile.param("B")))


@dataclass(frozen=True, slots=True)
class _Entries:
    """The blocks of A."""

    own: Chunked
    chunk: Chunk
    at: Space

    def all(self) -> Blocks:
        """Each from the keys of its rows and columns."""
        count = self.own.chunk // BLOCK
        keys = [self._keys(b) for b in range(count)]
        return {(i, j): self._entries(i, j, keys) for i in range(count) for j in range(i + 1)}

    def _keys(self, block: int) -> Node:
        w, at = self.own.writes, self.at
        bounds: dict[int, tile.Value] = {1: tile.param(w.length)}
        if limit := column_limit(w.rows, at.dims.size):
            bounds[3] = limit
        place = (self.chunk.batch, chunk_blocks.token(self.chunk, block, at.rows), self.chunk.head, tile.iota(at.dims))
        return tile.load(self.own.tensor(w.k, w.heads, w.rows), *place, bounds=bounds)

    def _sums(self, block: int, axis: Axis) -> Node:
        place = (self.chunk.batch, self.chunk.head, chunk_blocks.token(self.chunk, block, axis))
        return tile.load(self.own.sums, *place)

    def _entries(self, i: int, j: int, keys: list[Node]) -> Node:
        own, at = self.own, self.at
        other = tile.rename(keys[j], at.rows, at.columns)
        found = tile.dot(keys[i], other, at.dims, precision=own.schedule.precision)
        if own.decays:
            found = mul(found, power_of_two(sub(self._sums(i, at.rows), self._sums(j, at.columns))))
        beta = self.chunk.beta_at(chunk_blocks.token(self.chunk, j, at.columns))
        found = found if beta is None else mul(found, beta)
        return tile.apply(Fn.WHERE, at.below(), found, 0.0) if i == j else found
