"""The second half of key-outer where a warp loads for the others: 64 tokens of one head, partial outputs as boxes.

A row reads its own chunk first, while its partial outputs come; they join behind the last key, where the sums have left
the tensor cores anyway. Nothing of a row is then known before the loop but log-sum-exps and scales, a few numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import reduce

from sparsec.lower import softmax
from sparsec.lower.gathered import chunks, partials, slot_merge, stretch
from sparsec.lower.gathered.chunks import Frame, Unit
from sparsec.lower.gathered.partials import Partials
from sparsec.lower.inverse import index as inverse
from sparsec.lower.rows import packed
from sparsec.lower.scalars import add, both, ceil_div, most, mul, sub
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program
from sparsec.tile.schedule import Schedule, ScheduleError

ROWS = 64


def fits(spec: GatheredAttention) -> bool:
    """Whether every row has its own chunk first and few others, under one softmax, in half precision."""
    few = 2 <= spec.slots <= 1 + slot_merge.TOGETHER and spec.counts is None
    plain = spec.per == "joint" and spec.dtype != "float32" and not spec.captures
    return spec.own_first and few and plain and spec.chunk % ROWS == 0


def wanted(spec: GatheredAttention, before: Schedule) -> bool:
    """Whether a first half under ``before`` leaves partial outputs to such a merge."""
    if not partials.by_slot(before):
        return False
    if not fits(spec):
        raise ScheduleError(f"{spec.name}: its merge cannot have a warp that loads for the others; use merge='alike'")
    return True


def schedule(before: Schedule) -> Schedule:
    """One group of 64 rows: two programs of 128 registers a thread share a processor (by hand 0.285 ms; one of two
    groups 0.29 to 0.31)."""
    return replace(before, rows=ROWS, block=64, warps=4, stages=2, registers=128, maximum=True)


@dataclass(frozen=True, slots=True)
class Other:
    """What rows chose for a slot.

    Attributes:
        used: whether that is a chunk other than the row's own ``[m]``.
        place: where the partial output is, which is there only where it is ``used``.
        height: its log-sum-exp in base two, minus infinity where there is none.
        scale: what the stored output is to be multiplied by, zero where there is none.
    """

    used: Node
    place: Node
    height: Node
    scale: Node


def lower(spec: GatheredAttention, schedule: Schedule) -> Program:
    """The kernel of one (tile of neighbouring tokens, query head, batch) per grid point; the last head first."""
    with tile.Builder() as builder:
        group, results = spec.heads // spec.kv_heads, partials.partials(spec, schedule)
        head = sub(spec.heads - 1, tile.program_id(1))
        key_head = tile.apply(Fn.TRUNCDIV, head, group)
        rows = packed(builder.axis("m", schedule.rows), tile.program_id(0), head, 1)
        listed = {"head": head, "kv_head": key_head, "token": tile.const(0)}[spec.scope]
        f = chunks.frame(builder, spec, schedule, rows, tile.program_id(2), Unit(listed, key_head, head), 0)
        own = inverse.own_chunk(spec, rows.token)
        own = tile.apply(Fn.WHERE, tile.apply(Fn.LT, add(rows.token, tile.param("q_offset")), 0), -1, own)
        others = [_other(f, results, own, slot) for slot in range(spec.slots)]
        state = stretch.read_once(f, slot_merge.own_stretch(f, own), chunks.start(f))
        outs, lse = _joined(f, results, others, state)
        chunks.write(f, outs, lse)
        grid = (ceil_div(tile.param("TQ"), rows.tokens), tile.const(spec.heads), tile.param("B"))
        names = [(name, "int32") for name in (*chunks.PARAMS, "PT")]
        return builder.program(f"{spec.name}_merge", [*f.tensors.values(), *results.tensors], names, grid)


def _other(f: Frame, results: Partials, own: Node, slot: int) -> Other:
    spec, token = f.spec, f.rows.token
    listed = (f.batch, token, f.listed, tile.const(slot))
    ids = tile.load(f.tensors[spec.indices], *listed, bounds={1: tile.param("TQ")}, other=-1)
    used = both(tile.apply(Fn.LE, 0, ids), tile.apply(Fn.NE, ids, own))
    local = sub(f.rows.head, mul(f.key_head, spec.heads // spec.kv_heads))
    place = partials.row(spec, local, slot, token)
    at, there = (f.batch, f.key_head), tile.param("PT")
    lse = tile.load(results.lse, *at, place, bounds={2: there})
    assert results.scale is not None
    scale = tile.load(results.scale, *at, tile.const(0), place, bounds={3: there})
    height = tile.apply(Fn.WHERE, used, mul(lse, softmax.LOG2E), -math.inf)
    return Other(used, place, height, tile.apply(Fn.WHERE, used, scale, 0.0))


def _joined(f: Frame, results: Partials, others: list[Other], state: list[Node]) -> tuple[list[Node], Node]:
    """One softmax over a row's own chunk and its partial outputs, each of which counts as one key."""
    *accs, top, total = state
    level = reduce(most, [top, *(other.height for other in others)])
    keep, *weights = (tile.apply(Fn.EXP2, sub(x, level)) for x in (top, *(other.height for other in others)))
    total = reduce(add, weights, mul(total, keep))
    (share,), lse = softmax.finish([tile.full(1.0, f.rows.axis), level, total], f.sink)
    outs = [mul(acc, mul(keep, share)) for acc in accs]
    factors = [mul(mul(weight, other.scale), share) for weight, other in zip(weights, others, strict=True)]
    for other, factor in list(zip(others, factors, strict=True))[1:]:
        outs = _added(f, results, other, factor, outs)

    def first(n: Node, *carried: Node) -> list[Node]:  # n is 0: what depends on it stays under the condition
        return _added(f, results, replace(others[0], place=add(others[0].place, n)), factors[0], list(carried))

    return tile.loop(0, slot_merge.beyond(f), 1, outs, first), lse


def _added(f: Frame, results: Partials, other: Other, factor: Node, outs: list[Node]) -> list[Node]:
    """Outputs and what a slot adds; where nothing was stored for a row lies anything."""
    found = []
    for span, out in zip(f.values, outs, strict=True):
        at = (f.batch, f.key_head, other.place, span.index())
        stored = tile.cast(tile.load(results.out, *at, bounds={2: tile.param("PT")}), "float32")
        found.append(add(out, mul(tile.apply(Fn.WHERE, other.used, stored, 0.0), factor)))
    return found
