"""A softmax without a running maximum: a weight is a power of two of its own logit, and rows are checked afterwards.

Nothing is then rescaled, and neither weights nor products wait for a maximum. Numbers with fp32's range of exponents
carry this while a row's sum of weights and its largest output stay inside limits; tiles with other rows are read again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sparsec.lower import softmax
from sparsec.lower.gathered import chunks, partials
from sparsec.lower.gathered.chunks import Frame
from sparsec.lower.scalars import add, both, mul
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node

LIMITS = (2.0**-64, 2.0**64)
"""Where sums of weights are as fine as with a maximum: logits within 44 of zero."""

SMALLEST = 2.0**-64
"""What is below may come of weights times values that are no normal numbers."""


def fits(spec: GatheredAttention) -> bool:
    """Whether weights are rounded to numbers of fp32's range; those of fp32 itself are not worth it."""
    return spec.dtype == "bfloat16"


def wanted(f: Frame) -> bool:
    """Whether the schedule asks for weights without a maximum, and they are worth it."""
    return not f.schedule.maximum and fits(f.spec)


def start(f: Frame) -> list[Node]:
    """Accumulators and sums before any key."""
    *accs, _, total = chunks.start(f)
    return [*accs, total]


def step(
    f: Frame, state: Sequence[Node], key: Node, scores: Node, scale: float, member: Node | None = None
) -> list[Node]:
    """One tile of raw scores ``[m, n]``; ``scale`` (> 0) turns them into base-two logits.

    Rows that are no ``member`` have their logits lowered to where every weight is zero.
    """
    *accs, total = state
    logits = mul(scores, scale)
    if member is not None:
        logits = add(logits, tile.apply(Fn.WHERE, member, 0.0, softmax.HIDDEN))
    p = tile.apply(Fn.EXP2, logits)
    out, load_value = [], chunks.value_reader(f, key)
    for acc, span in zip(accs, f.values, strict=True):
        v = load_value(span)
        out.append(tile.dot(tile.cast(p, v.dtype), v, f.keys, acc, f.schedule.precision))
    return [*out, add(total, tile.reduce("sum", p, f.keys))]


def checked(f: Frame, state: Sequence[Node], largest: Node, anew: Callable[..., Sequence[Node]]) -> list[Node]:
    """The state of a softmax whose maximum is zero, and ``largest``; where some row is unsafe, what ``anew`` gives."""
    *accs, total = state
    doubt = tile.apply(Fn.EQ, tile.reduce("max", unsafe(total, largest), f.rows.axis), 1)
    return tile.loop(0, doubt, 1, [*accs, tile.full(0.0, f.rows.axis), total, largest], anew)


def unsafe(total: Node, largest: Node) -> Node:
    """1 for a row whose sum of weights or largest magnitude is out of bounds, else 0."""
    sums = both(tile.apply(Fn.LT, LIMITS[0], total), tile.apply(Fn.LT, total, LIMITS[1]))
    outs = both(tile.apply(Fn.LT, SMALLEST, largest), tile.apply(Fn.LT, largest, math.inf))
    return tile.apply(Fn.WHERE, both(sums, outs), 0, 1)  # what is no number is below nothing


def joint(f: Frame, state: Sequence[Node], anew: Callable[[Node], Sequence[Node]]) -> list[Node]:
    """The state of a softmax with a maximum from one without; ``anew`` finds it from zero, which it is given as a node.

    What depends on that node stays under the condition that some row is unsafe.
    """

    def again(n: Node, *_: Node) -> Sequence[Node]:
        found = anew(n)
        return [*found, partials.magnitude(f, found[:-2])]

    return checked(f, state, partials.magnitude(f, state[:-1], finite=False), again)[:-1]
