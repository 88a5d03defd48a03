"""L = (I + A)⁻¹ − I of every chunk of a delta rule, A strictly lower: A_ij = beta_j (k_i·k_j) e^{Γ_i − Γ_j}.

What L is multiplied with is added to the product in fp32, so that rounding L costs little. Blocks of 16 tokens: squares
of 8 on the diagonal by substitution, row after row; all else from them by small products.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk import blocks, units
from sparsec.lower.scan.chunk.blocks import BLOCK, Blocks, Space
from sparsec.lower.scan.chunk.parts import CHUNKS, Chunk, Chunked, column_limit, power, power_of_two
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program

_HELD = 128
"""Key dims of all tokens of a chunk that a warp holds; of more it holds half of that at once."""


def lower(own: Chunked) -> Program:
    """One (chunk, head, batch) per grid point."""
    w = own.writes
    with tile.Builder() as builder:
        at = blocks.space(builder, own, power(w.rows) if power(w.rows) <= _HELD else _HELD // 2)
        chunk = Chunk(own, tile.program_id(2), tile.program_id(1), tile.program_id(0))
        solved = blocks.inverse(_Entries(own, chunk, at).all(), at, w.half)
        blocks.store(own.solved, chunk, at, solved, unit=True)
        tensors = [own.tensor(w.k, w.heads, w.rows), own.solved] + [own.sums] * own.decays
        tensors += units.tensors(own, w.k, w.heads)
        return own.program(builder, "solve", tensors + own.betas(), (tile.param(CHUNKS), w.heads, tile.param("B")))


@dataclass(frozen=True, slots=True)
class _Entries:
    """The blocks of A."""

    own: Chunked
    chunk: Chunk
    at: Space

    def all(self) -> Blocks:
        """Each from the keys of its rows and columns."""
        count, at = self.own.chunk // BLOCK, self.at
        parts, places = (
            power(self.own.writes.rows) // at.dims.size,
            [(i, j) for i in range(count) for j in range(i + 1)],
        )

        def visit(part: Node, *found: Node | None) -> list[Node]:
            keys = [self._keys(block, mul(part, at.dims.size)) for block in range(count)]
            return [self._products(keys, place, acc) for place, acc in zip(places, found, strict=True)]

        nothing = [tile.full(0.0, at.rows, at.columns)] * len(places)
        one = parts == 1
        found = visit(tile.const(0), *[None] * len(places)) if one else tile.loop(0, parts, 1, nothing, visit)
        return {place: self._entries(*place, x) for place, x in zip(places, found, strict=True)}

    def _keys(self, block: int, start: Node) -> Node:
        w, at = self.own.writes, self.at
        bounds: dict[int, tile.Value] = {1: tile.param(w.length)}
        if limit := column_limit(w.rows, power(w.rows)):
            bounds[3] = limit
        dims = add(start, tile.iota(at.dims))
        place = (self.chunk.batch, blocks.token(self.chunk, block, at.rows), self.chunk.head, dims)
        return tile.load(self.own.tensor(w.k, w.heads, w.rows), *place, bounds=bounds)

    def _products(self, keys: list[Node], place: tuple[int, int], acc: Node | None) -> Node:
        at, (i, j) = self.at, place
        other = tile.rename(keys[j], at.rows, at.columns)
        return tile.dot(keys[i], other, at.dims, acc, self.own.schedule.precision)

    def _sums(self, block: int, axis: Axis) -> Node:
        place = (self.chunk.batch, self.chunk.head, blocks.token(self.chunk, block, axis))
        return tile.load(self.own.sums, *place)

    def _entries(self, i: int, j: int, found: Node) -> Node:
        own, at = self.own, self.at
        if own.decays:
            found = mul(found, power_of_two(sub(self._sums(i, at.rows), self._sums(j, at.columns))))
        found = units.scaled(found, units.of_keys(self.chunk, blocks.token(self.chunk, i, at.rows)))
        beta = self.chunk.beta_at(blocks.token(self.chunk, j, at.columns))
        found = found if beta is None else mul(found, beta)
        return tile.apply(Fn.WHERE, at.below(), found, 0.0) if i == j else found
