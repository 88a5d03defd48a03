"""Partial outputs of key-outer attention: what a choice of a chunk gives to one query row, until rows are merged.

In half precision a row is stored in fp16 over its largest magnitude, and that in fp32 beside it: as many bytes as bf16,
eight times finer, and a row of any size fits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from sparsec.lower import softmax
from sparsec.lower.gathered.chunks import Frame
from sparsec.lower.inverse import index as inverse
from sparsec.lower.lowered import Scratch
from sparsec.lower.pieces import Span
from sparsec.lower.scalars import add, most, mul
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor
from sparsec.tile.schedule import Schedule

SMALLEST = 2.0**-126
"""The least normal fp32 number: its inverse is finite."""


@dataclass(frozen=True, slots=True)
class Partials:
    """What every choice of every head gives, without the sink: outputs are ``out * scale``.

    Row ``entry * share + r`` belongs to head r of those that share the list of an entry of the inverse; ``by_slot``,
    row ``(head * slots + slot) * TQ + token`` to a key/value head's ``head``, so that tokens are neighbours. Rows of
    choices that are none, and of a token's own chunk, are left as they are.

    Attributes:
        out: ``[B, HKV, PT, DV]``, fp16 for half precision, else fp32.
        lse: fp32 log-sum-exps ``[B, HKV, PT]``.
        scale: fp32 ``[B, HKV, value blocks, PT]``; None where ``out`` is fp32.
    """

    out: Tensor
    lse: Tensor
    scale: Tensor | None

    @property
    def tensors(self) -> list[Tensor]:
        """All buffers in launch order."""
        return [t for t in (self.out, self.lse, self.scale) if t is not None]


def partials(spec: GatheredAttention, schedule: Schedule) -> Partials:
    """The buffers of one spec under one schedule."""
    lead: tuple[str | int, ...] = ("B", spec.kv_heads)
    half, blocks = spec.dtype != "float32", spec.value_dim // (schedule.value_block or spec.value_dim)
    return Partials(
        Tensor(f"{spec.name}_partial", "float16" if half else "float32", (*lead, "PT", spec.value_dim)),
        Tensor(f"{spec.name}_partial_lse", "float32", (*lead, "PT")),
        Tensor(f"{spec.name}_partial_scale", "float32", (*lead, blocks, "PT")) if half else None,
    )


def count(spec: GatheredAttention) -> Node:
    """PT."""
    return mul(tile.param("TQ"), spec.heads // spec.kv_heads * spec.slots)


def params(spec: GatheredAttention) -> tuple[tuple[str, Expr], ...]:
    """The number of partial outputs of a key/value head."""
    return (("PT", var("TQ") * (spec.heads // spec.kv_heads * spec.slots)),)


def by_slot(schedule: Schedule) -> bool:
    """Whether a slot's partial outputs of a head lie together, as a merge reads them whose warps have roles."""
    return schedule.has_roles and schedule.merge in ("roles", "walk")


def row(spec: GatheredAttention, head: Node, slot: Node | int, token: Node) -> Node:
    """The row of a token's slot where they lie by slot; ``head`` counts those of a key/value head."""
    return add(mul(add(mul(head, spec.slots), slot), tile.param("TQ")), token)


def scratch(spec: GatheredAttention, schedule: Schedule) -> tuple[Scratch, ...]:
    """The buffers to allocate."""
    return tuple(inverse.as_scratch(t) for t in partials(spec, schedule).tensors)


def write(f: Frame, results: Partials, place: Node, state: Sequence[Node], largest: Node | None = None) -> None:
    """Round and store what a softmax without a sink found; places from PT on are none.

    ``largest`` is the rows' largest finite magnitude, where that is known already.
    """
    *accs, top, total = state
    (share,), lse = softmax.finish([tile.full(1.0, f.rows.axis), top, total], None)
    at = (f.batch, f.key_head, place)
    factor = share
    if results.scale is not None:
        largest = most(magnitude(f, accs) if largest is None else largest, SMALLEST)
        factor = tile.apply(Fn.DIV, tile.const(1.0), largest)
        where = _scale_at(f, place)
        tile.store(results.scale, *where, value=mul(largest, share), bounds={3: count(f.spec)})
    for span, acc in zip(f.values, accs, strict=True):
        value = tile.cast(mul(acc, factor), results.out.dtype)
        tile.store(results.out, *at, span.index(f.value_base), value=value, bounds={2: count(f.spec)})
    tile.store(results.lse, *at, value=lse, bounds={2: count(f.spec)})


def magnitude(f: Frame, accs: Sequence[Node], finite: bool = True) -> Node:
    """The largest magnitude of each row; of those that are ``finite``, infinities stay what they are over it."""

    def largest(acc: Node, span: Span) -> Node:
        size = tile.apply(Fn.ABS, acc)
        if finite:
            size = tile.apply(Fn.WHERE, tile.apply(Fn.LT, size, math.inf), size, 0.0)
        return tile.reduce("max", size, span.axis)

    return reduce(most, map(largest, accs, f.values))


def _scale_at(f: Frame, place: Node) -> tuple[Node, ...]:
    block = f.schedule.value_block
    number = tile.apply(Fn.TRUNCDIV, tile.lift(f.value_base), block) if block else tile.const(0)
    return f.batch, f.key_head, number, place


def outputs(f: Frame, results: Partials, place: Node) -> list[Node]:
    """What was stored of the outputs, in fp32; zero where the place is none."""
    at = (f.batch, f.key_head, place)
    found = (tile.load(results.out, *at, span.index(f.value_base), bounds={2: count(f.spec)}) for span in f.values)
    return [tile.cast(x, "float32") for x in found]


def scaled(f: Frame, results: Partials, place: Node, weight: Node) -> Node:
    """The weight of what was stored, from the weight of an output."""
    if results.scale is None:
        return weight
    return mul(weight, tile.load(results.scale, *_scale_at(f, place), bounds={3: count(f.spec)}))


def log_sums(f: Frame, results: Partials, place: Node) -> Node:
    """The log-sum-exps; minus infinity where the place is none."""
    return tile.load(results.lse, f.batch, f.key_head, place, bounds={2: count(f.spec)}, other=-math.inf)
