"""The online softmax of one key tile, in base two, as a step on (accumulators, row maximum, row sum)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sparsec.lower.pieces import Span
from sparsec.lower.scalars import add, mul, sub
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node

LOG2E = math.log2(math.e)
LN2 = math.log(2.0)
HIDDEN = -(2.0**100)
"""The score of a masked pair: a power of two, so that times any scale it is exact in fp32.

Where a whole tile is masked, ``score * scale - maximum`` is then zero even if it is computed as one fused multiply-add;
a rounding error at this size would be an exponent of 1e22.
"""

NOTHING = -1e20
"""A row whose maximum stays below has nothing to attend to (scores are scaled by no less than 1e-10)."""


def start(row_axes: Sequence[Axis], values: Sequence[Span]) -> list[Node]:
    """The state before any key."""
    return [
        *(tile.full(0.0, *row_axes, v.axis) for v in values),
        tile.full(HIDDEN, *row_axes),
        tile.full(0.0, *row_axes),
    ]


def step(
    state: Sequence[Node],
    scores: Node,
    scale: float,
    keys: Axis,
    load_value: Callable[[Span], Node],
    values: Sequence[Span],
    precision: str,
    member: Node | None = None,
) -> list[Node]:
    """One tile of raw scores ``[rows, keys]``; ``scale`` (> 0) turns them into base-two logits.

    Rows that are no ``member`` keep their state: nothing is masked, their keys are measured against a height where
    every weight is zero.
    """
    *accs, top, total = state
    high = level = tile.apply(Fn.MAXIMUM, top, mul(tile.reduce("max", scores, keys), scale))
    if member is not None:
        high = tile.apply(Fn.WHERE, member, level, top)
        level = tile.apply(Fn.WHERE, member, level, -HIDDEN)
    p = tile.apply(Fn.EXP2, sub(mul(scores, scale), level))
    keep = tile.apply(Fn.EXP2, sub(top, high))
    out = []
    for acc, span in zip(accs, values, strict=True):
        v = load_value(span)
        out.append(tile.dot(tile.cast(p, v.dtype), v, keys, mul(acc, keep), precision))
    return [*out, high, add(mul(total, keep), tile.reduce("sum", p, keys))]


def finish(state: Sequence[Node], sink: Node | None) -> tuple[list[Node], Node]:
    """Outputs and the natural log-sum-exp; a row without keys gives 0 and minus infinity or the sink's logit.

    The sink joins here, not before the first key: weights beside a large one are too small for half precision.
    """
    *accs, top, total = state
    empty = tile.apply(Fn.LE, top, NOTHING)
    if sink is None:
        lse = mul(add(top, tile.apply(Fn.LOG2, total)), LN2)
        factor = tile.apply(Fn.WHERE, empty, 0.0, _inverse(tile.apply(Fn.WHERE, empty, 1.0, total)))
        return [mul(acc, factor) for acc in accs], tile.apply(Fn.WHERE, empty, -math.inf, lse)
    height = mul(sink, LOG2E)
    level = tile.apply(Fn.MAXIMUM, top, height)
    keep = tile.apply(Fn.WHERE, empty, 0.0, tile.apply(Fn.EXP2, sub(top, level)))
    total = add(mul(total, keep), tile.apply(Fn.EXP2, sub(height, level)))
    factor = tile.apply(Fn.WHERE, empty, 0.0, tile.apply(Fn.DIV, keep, total))
    return [mul(acc, factor) for acc in accs], mul(add(level, tile.apply(Fn.LOG2, total)), LN2)


def _inverse(total: Node) -> Node:
    """One division a row; one an element was a third of the instructions of a short kernel."""
    return tile.apply(Fn.DIV, tile.const(1.0), total)
