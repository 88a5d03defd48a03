"""Attention over chosen chunks, tile-union: neighbouring tokens read the union of their chunks once, each its own part.

Reading a chunk once for many queries is what pays where neighbours agree;
``sparsec.lower.gathered.union_list`` finds the union.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from sparsec.lower import descriptors, softmax
from sparsec.lower.gathered import chunks, flat, union_list
from sparsec.lower.gathered.chunks import Frame
from sparsec.lower.gathered.union_list import Union
from sparsec.lower.rows import packed
from sparsec.lower.scalars import add, ceil_div, least, most, mul
from sparsec.lower.tiled.space import FEW_REGISTERS
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program
from sparsec.tile.schedule import Schedule, ScheduleError

Segment = tuple[Node, Node, bool]
Step = Callable[..., list[Node]]
"""One tile of keys: frame, state, keys, scores, their scale and the rows that take part -> state."""

MOST_WORDS = 4
"""Words of 32 tokens whose membership a row tests by selection."""


def check(spec: GatheredAttention, schedule: Schedule) -> None:
    """Refuse a schedule that cannot carry this spec out."""
    share = chunks.sharing(spec)
    if schedule.rows < share:
        raise ScheduleError(f"{schedule.rows} rows do not hold the {share} heads that share a list of chunks")
    if schedule.rows // share > 32 * MOST_WORDS:
        raise ScheduleError(f"{schedule.rows // share} tokens per tile are more than the {32 * MOST_WORDS} of a union")


def lower(spec: GatheredAttention, schedule: Schedule) -> Program:
    """The kernel of one (query tile, unit of heads, batch) per grid point."""
    with tile.Builder() as builder:
        found = union_list.union(spec, schedule)
        blocks = spec.value_dim // schedule.value_block if schedule.value_block else 1
        number = tile.program_id(1)
        base = mul(tile.apply(Fn.TRUNCMOD, number, blocks), schedule.value_block) if blocks > 1 else 0
        at = chunks.unit(spec, tile.apply(Fn.TRUNCDIV, number, blocks))
        rows = packed(builder.axis("m", schedule.rows), tile.program_id(0), at.head, chunks.sharing(spec))
        f = chunks.frame(builder, spec, schedule, rows, tile.program_id(2), at, base)
        outs, lse = _joint(f, found) if spec.per == "joint" else (_per_chunk(f, found), None)
        chunks.write(f, outs, lse)
        listed = {spec.indices, spec.counts, spec.weights}
        union = [t for t in (found.ids, found.counts, found.members, found.weights) if t is not None]
        tensors = [*(t for t in f.tensors.values() if t.name not in listed), *union]
        units = spec.heads // chunks.sharing(spec) * blocks
        grid = (ceil_div(tile.param("TQ"), found.tokens), tile.const(units), tile.param("B"))
        return builder.program(spec.name, tensors, [(name, "int32") for name in chunks.PARAMS], grid)


def _place(f: Frame) -> tuple[Node, Node, Node]:
    """The union of this tile."""
    return f.batch, f.listed, tile.program_id(0)


def member(f: Frame, found: Union, entry: Node) -> Node:
    """Which rows belong to tokens that chose an entry."""
    words = [tile.load(found.members, *_place(f), entry, tile.const(w)) for w in range(-(-found.tokens // 32))]
    word = words[0]
    for number, other in enumerate(words[1:], 1):
        word = tile.apply(Fn.WHERE, tile.apply(Fn.LE, 32 * number, f.rows.local), other, word)
    shift = tile.apply(Fn.TRUNCMOD, f.rows.local, 32) if len(words) > 1 else f.rows.local
    return tile.apply(Fn.EQ, tile.apply(Fn.AND, tile.apply(Fn.SHR, word, shift), 1), 1)


def _segments(f: Frame, found: Union) -> list[Segment]:
    """Runs of entries and whether their chunks are whole: mask-free ones get a loop of their own under "split"."""
    zero, count = tile.const(0), tile.load(found.counts, *_place(f))
    ranges = chunks.interior(f) if f.schedule.phases == "split" and f.spec.chunk % f.schedule.block == 0 else None
    if ranges is None or len(ranges) != 1 or not ranges[0].inner:
        return [(zero, count, False)]
    entries = found.ids.shape[-1]
    assert isinstance(entries, int)
    lane = tile.iota(tile.Builder.current().axis("u", 1 << (entries - 1).bit_length()))
    ids = tile.load(found.ids, *_place(f), lane, bounds={3: count}, other=union_list.NONE)

    def below(limit: Node) -> Node:
        return tile.reduce("sum", tile.apply(Fn.WHERE, tile.apply(Fn.LT, ids, limit), 1, 0), ids.axes[0])

    parts, r = chunks.parts(f), ranges[0]
    start = below(ceil_div(r.inner_start, parts)) if r.head else zero
    stop = most(below(tile.apply(Fn.TRUNCDIV, r.inner_stop, parts)), start)
    return [*([(zero, start, False)] if r.head else []), (start, stop, True), (stop, count, False)]


def _joint(f: Frame, found: Union) -> tuple[list[Node], Node]:
    """One softmax per row over the chunks of the union that the row's token chose."""
    if not flat.wanted(f):
        return softmax.finish(_walk(f, found, _segments(f, found), chunks.start(f), chunks.joint_step), f.sink)
    state = _walk(f, found, _segments(f, found), flat.start(f), flat.step)

    def anew(zero: Node) -> list[Node]:
        all_of_it = [(zero, tile.load(found.counts, *_place(f)), False)]
        return _walk(f, found, all_of_it, chunks.start(f), chunks.joint_step, 1)

    return softmax.finish(flat.joint(f, state, anew), f.sink)


def _walk(
    f: Frame, found: Union, segments: Sequence[Segment], state: list[Node], step: Step, stages: int | None = None
) -> list[Node]:
    """The state after the entries of some segments."""
    parts = chunks.parts(f)

    def visit(n: Node, carried: Sequence[Node], whole: bool) -> Sequence[Node]:
        entry = tile.apply(Fn.TRUNCDIV, n, parts)
        chunk = tile.load(found.ids, *_place(f), entry)
        part = tile.apply(Fn.TRUNCMOD, n, parts) if parts > 1 else tile.const(0)
        scored = chunks.part_scores(f, chunk, part, whole=whole)
        return step(f, carried, *scored, member(f, found, entry))

    for lo, hi, whole in segments:
        body = partial(_spread, visit, whole)
        state = tile.loop(mul(lo, parts), mul(hi, parts), 1, state, body, stages or f.schedule.stages)
    return state


def _spread(
    visit: Callable[[Node, Sequence[Node], bool], Sequence[Node]], whole: bool, n: Node, *carried: Node
) -> Sequence[Node]:
    return visit(n, carried, whole)


def _per_chunk(f: Frame, found: Union) -> list[Node]:
    """A softmax inside each chunk; rows whose token did not choose it have weight zero.

    Each row counts the entries that its token chose so far: that is the place of the next weight in its sorted list.
    """
    weights = found.weights
    assert weights is not None, "a softmax per chunk needs weights"

    def visit(entry: Node, carried: Sequence[Node], whole: bool) -> Sequence[Node]:
        passed, *accs = carried
        chunk = tile.load(found.ids, *_place(f), entry)
        chose, place = member(f, found, entry), least(passed, f.spec.slots - 1)
        bounds: dict[int, tile.Value] = {1: tile.param("TQ")}
        weight = tile.load(weights, f.batch, f.rows.token, f.listed, place, bounds=bounds)
        weight = tile.apply(Fn.WHERE, chose, weight, 0.0)
        outs = chunks.weigh_chunk(f, accs, weight, lambda part: chunks.part_scores(f, chunk, part, whole=whole))
        return [add(passed, tile.apply(Fn.WHERE, chose, 1, 0)), *outs]

    state = [tile.full(0, f.rows.axis, dtype="int32"), *(tile.full(0.0, f.rows.axis, e.axis) for e in f.values)]
    stages = f.schedule.stages if chunks.parts(f) == 1 else None
    for lo, hi, whole in _segments(f, found):
        state = tile.loop(lo, hi, 1, state, partial(_spread, visit, whole), stages)
    return state[1:]


def default(spec: GatheredAttention, target: str) -> Schedule:
    """64 rows, or as many as hold one token's heads, and a chunk's keys up to 64 at a time.

    On Hopper without a maximum: 7.9 ms became 7.5 (16 heads of 128, random lists) and 3.8 became 3.1 (lists that
    agree); heads of 64 gain more where chunks that need no mask have a loop of their own.
    """
    rows = max(64, 1 << (chunks.sharing(spec) - 1).bit_length())
    even = [b for b in (16, 32, 64) if spec.chunk % b == 0]
    block = max(even) if even else min(64, max(16, 1 << (spec.chunk - 1).bit_length()))
    boxes, widest = (
        descriptors.pay(target, spec.dtype, spec.head_dim, spec.value_dim),
        max(spec.head_dim, spec.value_dim),
    )
    crowded = target in FEW_REGISTERS and widest > 64
    warps = 8 if rows > 64 or crowded else 4
    stages = 2 if widest <= 64 or not boxes else 3
    found = Schedule(order="tile_union", rows=rows, block=block, warps=warps, stages=stages, descriptors=boxes)
    plain = spec.per == "joint" and spec.bias is None and spec.softcap is None and flat.fits(spec)
    if target != "triton:sm_90" or not plain or widest > 128 or rows > 64 or spec.chunk % 64:
        return found
    return replace(found, maximum=False) if widest > 64 else replace(found, maximum=False, phases="split")
