"""Partial results of programs that share a row's keys, and the program that merges them.

Each split writes its output under a softmax of its own with that softmax's log-sum-exp, or a plain part of a sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsec.lower import softmax
from sparsec.lower.gathered import chunks
from sparsec.lower.gathered.chunks import Frame
from sparsec.lower.lowered import Lowered, Scratch, Step
from sparsec.lower.pieces import spans
from sparsec.lower.scalars import add, mul, sub
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.expr import constant, var
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the splits of a kernel write: out ``[B, TQ, H, splits, DV]`` and lse ``[B, TQ, H, splits]``, fp32.

    Attributes:
        lse: None for parts of a sum.
    """

    out: Tensor
    lse: Tensor | None

    @property
    def tensors(self) -> list[Tensor]:
        """Both, in launch order."""
        return [self.out] if self.lse is None else [self.out, self.lse]


def parts(spec: GatheredAttention, splits: int) -> Parts:
    """The buffers of one spec."""
    lead: tuple[str | int, ...] = ("B", "TQ", spec.heads, splits)
    lse = Tensor(f"{spec.name}_part_lse", "float32", lead) if spec.per == "joint" else None
    return Parts(Tensor(f"{spec.name}_part", "float32", (*lead, spec.value_dim)), lse)


def scratch(found: Sequence[Tensor]) -> tuple[Scratch, ...]:
    """Buffers to allocate."""
    return tuple(Scratch(t.name, tuple(var(d) if isinstance(d, str) else constant(d) for d in t.shape), t.dtype)
                 for t in found)  # fmt: skip


def write(f: Frame, found: Parts, split: Node, outs: Sequence[Node], lse: Node | None) -> None:
    """Store one split's part."""
    for span, out in zip(f.values, outs, strict=True):
        tile.store(found.out, *f.rows.place(f.batch, split, span.index()), value=out, bounds=f.rows.bounds)
    if found.lse is not None:
        assert lse is not None
        tile.store(found.lse, *f.rows.place(f.batch, split), value=lse, bounds=f.rows.bounds)


def finished(spec: GatheredAttention, schedule: Schedule, first: Step, whole: bool) -> Lowered:
    """The program that leaves parts, and where the ``whole`` is asked for, the one that merges them."""
    short = short_lived(schedule, schedule.splits)
    steps = (first, Step(lower(spec, short), short)) if whole else (first,)
    return Lowered(steps, scratch(parts(spec, schedule.splits).tensors))


def short_lived(schedule: Schedule, splits: int) -> Schedule:
    """The schedule of a program that merges a row's parts: each thread has all parts of some columns, on a GPU."""
    return replace(schedule, warps=max(1, splits // 8) if schedule.split_dims else schedule.warps, stages=1)


def lower(spec: GatheredAttention, schedule: Schedule) -> Program:
    """One (token, head, sequence) per grid point: the joint softmax of its splits with the sink, or their sum."""
    found, buffers = parts(spec, schedule.splits), chunks.tensors(spec)
    with tile.Builder() as builder:
        split = builder.axis("s", schedule.splits)
        values = spans(builder, "e", spec.value_dim, schedule)
        place = (tile.program_id(2), tile.program_id(0), tile.program_id(1))
        own, lse = shares(spec, found, place, tile.iota(split), buffers) if found.lse is not None else (None, None)
        for span in values:
            part = tile.load(found.out, *place, tile.iota(split), span.index())
            total = tile.reduce("sum", part if own is None else mul(part, own), split)
            out = buffers[spec.out]
            tile.store(out, *place, span.index(), value=tile.cast(total, out.dtype))
        results = [buffers[spec.out]]
        if spec.lse is not None:
            assert lse is not None
            tile.store(buffers[spec.lse], *place, value=lse)
            results.append(buffers[spec.lse])
        sinks = [buffers[spec.sink]] if spec.sink not in (None, "zero") and found.lse is not None else []
        params = [(name, "int32") for name in ("B", "TQ")]
        grid = (tile.param("TQ"), tile.const(spec.heads), tile.param("B"))
        return builder.program(f"{spec.name}_merge", [*found.tensors, *sinks, *results], params, grid)


def shares(
    spec: GatheredAttention, found: Parts, place: tuple[Node, ...], split: Node, buffers: dict[str, Tensor]
) -> tuple[Node, Node]:
    """Each split's share of one row's joint softmax, and the joint log-sum-exp; nothing where no split saw a key."""
    assert found.lse is not None
    (axis,) = split.axes
    lse = tile.load(found.lse, *place, split)
    top = tile.reduce("max", lse, axis)
    sink = None
    if spec.sink is not None:
        sink = tile.const(0.0) if spec.sink == "zero" else tile.load(buffers[spec.sink], place[2])
        top = tile.apply(Fn.MAXIMUM, top, sink)
    none = tile.apply(Fn.LE, top, -math.inf)
    top = tile.apply(Fn.WHERE, none, 0.0, top)
    mass = tile.apply(Fn.EXP2, mul(sub(lse, top), softmax.LOG2E))
    total = tile.reduce("sum", mass, axis)
    if sink is not None:
        total = add(total, tile.apply(Fn.EXP2, mul(sub(sink, top), softmax.LOG2E)))
    whole = tile.apply(Fn.WHERE, none, 1.0, total)
    joint = tile.apply(Fn.WHERE, none, -math.inf, add(top, mul(tile.apply(Fn.LOG2, whole), softmax.LN2)))
    return tile.apply(Fn.DIV, mass, whole), joint
