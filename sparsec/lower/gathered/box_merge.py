"""The second half of key-outer where a warp loads for the others: tokens of one head, partial outputs as boxes.

A row reads its own chunk first, while its partial outputs come; they join behind the last key, where the sums have left
the tensor cores anyway. Nothing of a row is then known before the loop but log-sum-exps and scales, a few numbers.
A program has 64 tokens, or walks over tiles of 128, whose rows come while the tile before is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

from sparsec.lower import softmax
from sparsec.lower.gathered import chunks, partials, slot_merge, stretch
from sparsec.lower.gathered.chunks import Frame, Unit
from sparsec.lower.gathered.partials import Partials
from sparsec.lower.inverse import index as inverse
from sparsec.lower.rows import packed
from sparsec.lower.scalars import add, both, ceil_div, least, most, mul, sub
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program
from sparsec.tile.schedule import Schedule, ScheduleError

ROWS = 64

PROCESSORS = 132
"""Of the largest GPU whose warps can have roles; each runs one program that walks at a time."""


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
    groups 0.29 to 0.31). Groups that walk are two, and have a processor to themselves."""
    if before.merge == "walk":
        return replace(before, rows=2 * ROWS, block=64, warps=8, stages=3, registers=168, maximum=True, peel=True)
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
    """The kernel of one (tile of neighbouring tokens, query head, batch) per grid point, the last head first; or of one
    walk over such tiles, all heads of the last tokens first: their rows are neighbours in memory."""
    with tile.Builder() as builder:
        results, frames = partials.partials(spec, schedule), list[Frame]()
        first, tiles = tile.program_id(0), ceil_div(tile.param("TQ"), schedule.rows)
        if schedule.merge == "walk":
            every = mul(tiles, spec.heads)

            def visit(n: Node) -> Sequence[Node]:
                number, head = (tile.apply(fn, n, spec.heads) for fn in (Fn.TRUNCDIV, Fn.TRUNCMOD))
                number = sub(sub(tiles, 1), _turned(number, tiles, spec.chunk // schedule.rows))
                frames.append(_tile(builder, spec, schedule, results, number, head))
                return []

            tile.loop(first, every, PROCESSORS, [], visit)
            grid = (least(every, PROCESSORS), tile.const(1), tile.param("B"))
        else:
            frames.append(_tile(builder, spec, schedule, results, first, sub(spec.heads - 1, tile.program_id(1))))
            grid = (tiles, tile.const(spec.heads), tile.param("B"))
        names = [(name, "int32") for name in (*chunks.PARAMS, "PT")]
        return builder.program(f"{spec.name}_merge", [*frames[0].tensors.values(), *results.tensors], names, grid)


def _turned(number: Node, tiles: Node, several: int) -> Node:
    """The tiles of a chunk in another order for each chunk: those at its end read all of it, those at its start little,
    and a program would always meet the same ones."""
    if several < 2:
        return number
    group, place = (tile.apply(fn, number, several) for fn in (Fn.TRUNCDIV, Fn.TRUNCMOD))
    whole = tile.apply(Fn.LE, mul(add(group, 1), several), tiles)
    moved = tile.apply(Fn.TRUNCMOD, add(place, group), several)
    return tile.apply(Fn.WHERE, whole, add(mul(group, several), moved), number)


def _tile(
    builder: tile.Builder, spec: GatheredAttention, schedule: Schedule, results: Partials, number: Node, head: Node
) -> Frame:
    """Outputs of tile ``number`` of the tokens."""
    key_head = tile.apply(Fn.TRUNCDIV, head, spec.heads // spec.kv_heads)
    rows = packed(builder.axis("m", schedule.rows), number, head, 1)
    listed = {"head": head, "kv_head": key_head, "token": tile.const(0)}[spec.scope]
    f = chunks.frame(builder, spec, schedule, rows, tile.program_id(2), Unit(listed, key_head, head), 0)
    stored = [_stored(f, results, tile.const(slot)) for slot in range(1, spec.slots)]
    own = inverse.own_chunk(spec, rows.token)
    own = tile.apply(Fn.WHERE, tile.apply(Fn.LT, add(rows.token, tile.param("q_offset")), 0), -1, own)
    state = stretch.read_once(f, slot_merge.own_stretch(f, own), _begun(f, results, own), some=True)
    chunks.write(f, *_joined(f, results, [_other(own, *found) for found in stored], state))
    return f


def _begun(f: Frame, results: Partials, own: Node) -> list[Node]:
    """The state of a softmax before any key: empty, but where a row's own chunk would come after the last one its first
    slot holds another, whose partial output then counts as a key."""

    def first(n: Node, *_: Node) -> list[Node]:  # n is 0: what depends on it stays under the condition
        other = _other(own, *_stored(f, results, n))
        nothing = [tile.full(0.0, f.rows.axis, span.axis) for span in f.values]
        some = tile.apply(Fn.WHERE, tile.apply(Fn.LT, softmax.HIDDEN, other.height), 1.0, 0.0)
        return [*_added(f, results, other, other.scale, nothing), most(other.height, softmax.HIDDEN), some]

    return tile.loop(0, slot_merge.beyond(f), 1, chunks.start(f), first)


def _stored(f: Frame, results: Partials, slot: Node) -> tuple[Node, Node, Node, Node]:
    """What rows chose for a slot and where its partial output is, with log-sum-exps and scales: on their way early."""
    spec, token = f.spec, f.rows.token
    listed = (f.batch, token, f.listed, slot)
    ids = tile.load(f.tensors[spec.indices], *listed, bounds={1: tile.param("TQ")}, other=-1)
    local = sub(f.rows.head, mul(f.key_head, spec.heads // spec.kv_heads))
    place = partials.row(spec, local, slot, token)
    at, there = (f.batch, f.key_head), tile.param("PT")
    lse = tile.load(results.lse, *at, place, bounds={2: there})
    assert results.scale is not None
    return ids, place, lse, tile.load(results.scale, *at, tile.const(0), place, bounds={3: there})


def _other(own: Node, ids: Node, place: Node, lse: Node, scale: Node) -> Other:
    used = both(tile.apply(Fn.LE, 0, ids), tile.apply(Fn.NE, ids, own))
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
    for other, factor in zip(others, factors, strict=True):
        outs = _added(f, results, other, factor, outs)
    return outs, lse


def _added(f: Frame, results: Partials, other: Other, factor: Node, outs: list[Node]) -> list[Node]:
    """Outputs and what a slot adds; where nothing was stored for a row lies anything."""
    found = []
    for span, out in zip(f.values, outs, strict=True):
        at = (f.batch, f.key_head, other.place, span.index())
        stored = tile.cast(tile.load(results.out, *at, bounds={2: tile.param("PT")}), "float32")
        found.append(add(out, mul(tile.apply(Fn.WHERE, other.used, stored, 0.0), factor)))
    return found
