"""What decays per key channel turn into before any state is needed: weights inside chunks, queries and keys faded.

    A_ij = Σ_d q_id k_jd e^{Γ_id − Γ_jd} beta_j (i >= j)      Q e^Γ      K e^{Γ_C − Γ}

and of a delta rule K e^Γ, and L from the same sums over keys. Blocks of 16 tokens: between two blocks, decays count
from the start of the later one, so that no exponent is positive. Inside a block they are counted from its start too,
which is exact while no channel fades by more than 2^-100 there; where one does, columns are worked out one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan import chunk_blocks
from sparsec.lower.scan.chunk_blocks import BLOCK, Blocks, Space
from sparsec.lower.scan.chunk_gates import log2_decay
from sparsec.lower.scan.chunk_parts import CHUNKS, Chunk, Chunked, column_limit, power_of_two
from sparsec.plan.scan_specs import Operand
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor

_DEEPEST = 100.0
"""Base-2 logarithm of what a channel may fade by inside a block."""


def lower(own: Chunked, query: Operand) -> Program:
    """One (chunk, head, batch) per grid point."""
    w = own.writes
    assert w.decay is not None
    with tile.Builder() as builder:
        at = chunk_blocks.space(builder, own)
        chunk = Chunk(own, tile.program_id(2), tile.program_id(1), tile.program_id(0))
        faded = _faded(own, chunk, at)
        queries, keys = (_rows(own, chunk, at, operand) for operand in (query, w.k))
        _store(own.lifted_queries, chunk, at, [mul(q, f) for q, f in zip(queries, faded.since, strict=True)])
        _store(own.faded_keys, chunk, at, [mul(k, f) for k, f in zip(keys, faded.left, strict=True)])
        tile.store(own.totals, chunk.batch, chunk.head, chunk.number, tile.iota(at.dims), value=faded.total)
        chunk_blocks.store(own.weights, chunk, at, _products(faded, chunk, at, queries, keys, own, strict=False), False)
        tensors = [own.tensor(o, w.heads, w.rows) for o in (query, w.k, w.decay)]
        tensors += [own.tensor(w.beta, w.heads)] if w.beta is not None else []
        tensors += own.keyed_scratch()
        if own.delta:
            _store(own.lifted_keys, chunk, at, [mul(k, f) for k, f in zip(keys, faded.since, strict=True)])
            entries = _products(faded, chunk, at, keys, keys, own, strict=True)
            chunk_blocks.store(own.solved, chunk, at, chunk_blocks.inverse(entries, at), unit=True)
        return own.program(builder, "keyed", tensors, (tile.param(CHUNKS), w.heads, tile.param("B")))


@dataclass(frozen=True, slots=True)
class _Faded:
    """Decays per block, base-2 logarithms ``[r,d]`` or ``[d]``, and what they leave.

    Attributes:
        local: from the start of the block; sums: over each block; total: over the chunk.
        since: left since the start of the chunk; left: at its end.
    """

    local: list[Node]
    sums: list[Node]
    total: Node
    since: list[Node]
    left: list[Node]

    def between(self, j: int, i: int) -> Node | None:
        """What is left of the blocks between two."""
        found: Node | None = None
        for m in range(j + 1, i):
            found = self.sums[m] if found is None else add(found, self.sums[m])
        return None if found is None else power_of_two(found)


def _faded(own: Chunked, chunk: Chunk, at: Space) -> _Faded:
    assert own.writes.decay is not None
    steps = [log2_decay(x) for x in _rows(own, chunk, at, own.writes.decay)]
    local, sums = [tile.scan(x, at.rows) for x in steps], [tile.reduce("sum", x, at.rows) for x in steps]
    before = [tile.full(0.0, at.dims)]
    for x in sums:
        before.append(add(before[-1], x))
    since = [power_of_two(add(x, start)) for x, start in zip(local, before, strict=False)]
    left = [power_of_two(sub(sub(before[-1], start), x)) for x, start in zip(local, before, strict=False)]
    return _Faded(local, sums, before[-1], since, left)


def _rows(own: Chunked, chunk: Chunk, at: Space, operand: Operand) -> list[Node]:
    """A tensor ``[B,N,heads,D]`` of the chunk's tokens in fp32, by block."""
    w = own.writes
    bounds: dict[int, tile.Value] = {1: tile.param(w.length)}
    if limit := column_limit(w.rows, at.dims.size):
        bounds[3] = limit
    tensor, found = own.tensor(operand, w.heads, w.rows), []
    for block in range(own.chunk // BLOCK):
        place = (chunk.batch, chunk_blocks.token(chunk, block, at.rows), chunk.head, tile.iota(at.dims))
        found.append(tile.cast(tile.load(tensor, *place, bounds=dict(bounds)), "float32"))
    return found


def _store(tensor: Tensor, chunk: Chunk, at: Space, blocks: list[Node]) -> None:
    for number, value in enumerate(blocks):
        place = (chunk.batch, chunk.head, chunk_blocks.token(chunk, number, at.rows), tile.iota(at.dims))
        tile.store(tensor, *place, value=tile.cast(value, tensor.dtype))


def _products(
    f: _Faded, chunk: Chunk, at: Space, left: list[Node], right: list[Node], own: Chunked, strict: bool
) -> Blocks:
    """Faded products of rows of ``left`` and ``right``, times beta; on the diagonal too unless ``strict``."""
    found: Blocks = {}
    ends = [mul(k, power_of_two(sub(f.sums[j], f.local[j]))) for j, k in enumerate(right)]
    for i, row in enumerate(left):
        start = mul(row, power_of_two(f.local[i]))
        for j in range(i + 1):
            if i == j:
                block = _on_the_diagonal(f.local[i], at, row, start, right[i])
                kept = at.below() if strict else tile.apply(Fn.LE, tile.iota(at.columns), tile.iota(at.rows))
                block = tile.apply(Fn.WHERE, kept, block, 0.0)
            else:
                between = f.between(j, i)
                other = ends[j] if between is None else mul(ends[j], between)
                block = _dot(start, other, at)
            beta = chunk.beta_at(chunk_blocks.token(chunk, j, at.columns))
            found[i, j] = block if beta is None else mul(block, beta)
    return found


def _dot(a: Node, b: Node, at: Space) -> Node:
    return tile.dot(a, tile.rename(b, at.rows, at.columns), at.dims, precision="tf32")


def _on_the_diagonal(local: Node, at: Space, row: Node, start: Node, other: Node) -> Node:
    """A block of which rows and columns are the same tokens."""
    grown = tile.apply(Fn.EXP2, tile.apply(Fn.MINIMUM, mul(local, -1.0), _DEEPEST))
    block = _dot(start, mul(other, grown), at)
    deepest = tile.reduce("min", tile.reduce("min", local, at.rows), at.dims)
    count = tile.apply(Fn.WHERE, tile.apply(Fn.LT, deepest, -_DEEPEST), tile.const(BLOCK), tile.const(0))

    def column(j: Node, block: Node) -> Sequence[Node]:
        mine = tile.apply(Fn.EQ, tile.iota(at.rows), j)
        key, fade = (tile.reduce("sum", tile.apply(Fn.WHERE, mine, x, 0.0), at.rows) for x in (other, local))
        found = tile.reduce("sum", mul(mul(row, power_of_two(sub(local, fade))), key), at.dims)
        return [tile.apply(Fn.WHERE, tile.apply(Fn.EQ, tile.iota(at.columns), j), found, block)]

    return tile.loop(0, count, 1, [block], column)[0]
