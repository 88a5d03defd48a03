"""The second half of a selector in two kernels: shares of candidates from log-sum-exps that are known.

Heads come before the summaries of a block, so that a head's queries are read once for a tile of candidates, and what
several summaries of a block share is added up in registers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from sparsec.lower import softmax
from sparsec.lower.ranges import tile_ranges
from sparsec.lower.scalars import add, both, most, mul, sub
from sparsec.lower.select import log_sums
from sparsec.lower.select.candidates import UNROLLED, as_keys, offsets, over_heads, products, query, shown
from sparsec.lower.select.frame import Frame, sharing
from sparsec.plan.specs import Piece, Selector
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node


def fits(spec: Selector) -> bool:
    """Whether shares are what is asked for, and pools of them are sums of few summaries."""
    if (
        spec.query_block > 1
        or not spec.softmax
        or spec.head_weights is not None
        or spec.bias is not None
        or spec.cosine
    ):
        return False
    if spec.pool is None:
        return True
    return spec.pool.kind not in ("max", "mean") and spec.group != "max" and len(offsets(spec.pool)[1]) <= UNROLLED


@dataclass(frozen=True, slots=True)
class Part:
    """One summary of every block of a tile: its number, clamped to 0, how often it counts, and whether it does."""

    number: Node
    count: int
    counts: Node


def shares(f: Frame, at: Node) -> Node:
    """Shares ``[rows, keys]`` of the blocks of tile ``at``, over the group's heads and each block's summaries."""
    found = _once(f, at) if f.spec.pool is None else _pooled(f, at)
    return mul(found, 1.0 / sharing(f.spec)) if f.spec.group == "mean" else found


def _once(f: Frame, at: Node) -> Node:
    """Of blocks that are summaries."""
    number = add(mul(at, f.schedule.block), tile.iota(f.keys))
    return _masked(f, Part(number, 1, shown(f, number)))


def _masked(f: Frame, part: Part) -> Node:
    """Of one summary of every block; the mask is applied once, after the heads are put together."""
    return tile.apply(Fn.WHERE, part.counts, _over_heads(f, [part], _nothing(f)), 0.0)


def _pooled(f: Frame, at: Node) -> Node:
    """Of blocks of several summaries, each by itself and masked only in tiles where some summary does not count."""
    assert f.spec.pool is not None
    step, counts = offsets(f.spec.pool)
    clear = _clear(f, at, step, counts)

    def parts(at: Node) -> list[Part]:
        block = add(mul(at, f.schedule.block), tile.iota(f.keys))
        return [_part(f, block, step, *item) for item in sorted(counts.items())]

    def masked(n: Node, total: Node) -> Sequence[Node]:  # n is 0: what depends on it stays under the condition
        return [reduce(add, (_masked(f, part) for part in parts(add(at, n))), total)]

    total = _nothing(f)
    if clear is None:
        return masked(tile.const(0), total)[0]
    (total,) = tile.loop(0, clear, 1, [total], lambda n, total: [_over_heads(f, parts(add(at, n)), total)])
    return tile.loop(0, tile.apply(Fn.NOT, clear), 1, [total], masked)[0]


def _nothing(f: Frame) -> Node:
    return tile.full(0.0, f.rows, f.keys)


def _part(f: Frame, block: Node, step: int, offset: int, count: int) -> Part:
    number = add(mul(block, step), offset)
    counts = shown(f, number)
    if offset < 0:
        number, counts = most(number, 0), both(counts, tile.apply(Fn.LE, 0, number))
    return Part(number, count, counts)


def _clear(f: Frame, at: Node, step: int, counts: Counter[int]) -> Node | None:
    """The scalar condition that every row sees every summary of a tile of blocks; None where that is never known."""
    first = mul(mul(at, f.schedule.block), step)
    low = add(first, min(counts))
    high = add(first, (f.schedule.block - 1) * step + max(counts))
    piece = Piece(f.spec.keys, f.spec.keys, f.spec.key_length, as_keys(f.spec.visible))
    found: Node | None = None
    for r in tile_ranges(piece, 1, tile.param(f.spec.key_length), f.env, f.tensors):
        if r.inner:
            inside = both(tile.apply(Fn.LE, r.inner_start, low), tile.apply(Fn.LT, high, r.inner_stop))
            found = inside if found is None else tile.apply(Fn.OR, found, inside)
    return found


def _over_heads(f: Frame, parts: Sequence[Part], start: Node) -> Node:
    """The sum (or the maximum) over heads of the sums over parts of exp2(score - log-sum-exp)."""
    scale, sums = f.spec.scale * softmax.LOG2E, log_sums.tensor(f.spec)

    def of_head(head: Node, total: Node) -> Node:
        queries = query(f, head)
        own = tile.load(sums, f.batch, f.row, add(f.head, head), bounds={1: tile.param("TQ")})
        for part in parts:
            height = tile.apply(Fn.SUB, own, math.log2(part.count)) if part.count > 1 else own
            power = tile.apply(Fn.EXP2, sub(mul(products(f, queries, part.number), scale), height))
            total = most(total, power) if f.spec.group == "max" else add(total, power)
        return total

    return over_heads(f, of_head, start)
