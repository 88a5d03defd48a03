"""How the gradients of chosen blocks' scores fall on summaries: each block's on all that it collects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from sparsec.lower.scalars import add, both, least, most, mul, sub
from sparsec.lower.select.candidates import offsets
from sparsec.lower.select.frame import Frame
from sparsec.plan.specs import Pool, Selector
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor


def spread(f: Frame, number: Node, listed: Node, grads: Tensor) -> Node:
    """Gradients ``[rows, keys]`` of the summaries ``number``, from those of list ``listed``'s blocks.

    Summary n counts in the blocks n // step + e for a few e, each so often as n % step says.
    """
    step, counts = offsets(f.spec.pool) if f.spec.pool is not None else (1, Counter([0]))
    own, rest = tile.apply(Fn.TRUNCDIV, number, step), tile.apply(Fn.TRUNCMOD, number, step)
    often = _by_block(step, counts)

    def visit(slot: Node, *sums: Node) -> Sequence[Node]:
        place, bounds = (f.batch, f.row, listed, slot), {1: tile.param("TQ")}
        unit = tile.load(f.tensors[f.spec.indices], *place, bounds=dict(bounds), other=-1)
        grad = _shared_out(f.spec, tile.load(grads, *place, bounds=dict(bounds)), unit)
        hits = (tile.apply(Fn.EQ, unit, add(own, e)) for e in often)
        return [add(x, tile.apply(Fn.WHERE, hit, grad, 0.0)) for x, hit in zip(sums, hits, strict=True)]

    nothing = tile.full(0.0, f.rows, f.keys)
    sums = tile.loop(0, f.spec.slots, 1, [nothing] * len(often), visit)
    total = nothing
    for found, runs in zip(sums, often.values(), strict=True):
        total = add(total, mul(found, _count(rest, step, runs)))
    return total


Runs = list[tuple[int, int, int]]
"""How often summaries count, by the rest of their number: (first, last, count)."""


def _by_block(step: int, counts: Counter[int]) -> dict[int, Runs]:
    """For each e, how often a summary counts in the block e after its own; blocks without any are left out."""
    found: dict[int, Runs] = {}
    for e in range(-(max(counts) // step), -(min(counts) // step) + 1):
        each = [(rest, counts[rest - step * e]) for rest in range(step)]
        runs = [(list(run), count) for count, run in groupby(each, key=lambda pair: pair[1])]
        if any(count for _, count in runs):
            found[e] = [(run[0][0], run[-1][0], count) for run, count in runs if count]
    return found


def _count(rest: Node, step: int, runs: Runs) -> Node:
    total: Node = tile.const(0.0)
    for first, last, count in runs:
        if last - first == step - 1:
            return tile.const(float(count))
        inside = both(tile.apply(Fn.LE, first, rest), tile.apply(Fn.LE, rest, last))
        total = add(total, tile.apply(Fn.WHERE, inside, float(count), 0.0))
    return total


def _shared_out(spec: Selector, grad: Node, unit: Node) -> Node:
    """A mean hands each summary that there is its share."""
    pool: Pool | None = spec.pool
    if pool is None or pool.kind != "mean":
        return grad
    step, counts = offsets(pool)
    first = mul(unit, step)
    low = most(add(first, min(counts)), 0)
    high = least(add(first, max(counts) + 1), tile.param(spec.key_length))
    return tile.apply(Fn.DIV, grad, tile.cast(most(sub(high, low), 1), "float32"))
