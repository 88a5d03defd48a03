"""Attention over chosen chunks, key-outer: a program gathers queries that chose one chunk and reads the chunk once.

Pays where neighbouring queries choose different chunks and few heads share a list. Every choice gives a partial output
and log-sum-exp; ``sparsec.lower.inverse`` finds who chose a chunk, ``sparsec.lower.slot_merge`` puts partials together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsec.lower import chunks, descriptors, inverse, softmax, stretch
from sparsec.lower.chunks import Frame, Unit
from sparsec.lower.inverse import Inverse, as_scratch
from sparsec.lower.lowered import Scratch
from sparsec.lower.rows import Rows
from sparsec.lower.scalars import add, both, least, mul, sub
from sparsec.lower.stretch import Stretch
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule, ScheduleError


@dataclass(frozen=True, slots=True)
class Partials:
    """What every choice of every head gives: outputs ``[B, HKV, PT, DV]`` and fp32 log-sum-exps ``[B, HKV, PT]``,
    both without the sink.

    Row ``entry * share + r`` belongs to head r of those that share the list of an entry of the inverse. Rows of choices
    that are none, and of a token's own chunk, are left as they are.
    """

    out: Tensor
    lse: Tensor


@dataclass(frozen=True, slots=True)
class Item:
    """A tile of queries that chose a chunk: entries ``first … first + count - 1``."""

    chunk: Node
    first: Node
    count: Node


def partials(spec: GatheredAttention) -> Partials:
    """The buffers of one spec; outputs are rounded to its dtype, whose errors average out in the merge."""
    lead: tuple[str | int, ...] = ("B", spec.kv_heads, "PT")
    return Partials(
        Tensor(f"{spec.name}_partial", spec.dtype, (*lead, spec.value_dim)),
        Tensor(f"{spec.name}_partial_lse", "float32", lead),
    )


def partial_count(spec: GatheredAttention) -> Node:
    """PT."""
    return mul(tile.param("TQ"), spec.heads // spec.kv_heads * spec.slots)


def params(spec: GatheredAttention) -> tuple[tuple[str, Expr], ...]:
    """The number of partial outputs of a key/value head."""
    return (("PT", var("TQ") * (spec.heads // spec.kv_heads * spec.slots)),)


def scratch(spec: GatheredAttention) -> tuple[Scratch, ...]:
    """The buffers to allocate."""
    found = partials(spec)
    return as_scratch(found.out), as_scratch(found.lse)


def check(spec: GatheredAttention, schedule: Schedule) -> None:
    """Refuse a schedule that cannot carry this spec out."""
    group = spec.heads // spec.kv_heads
    if schedule.rows < group:
        raise ScheduleError(f"{schedule.rows} rows do not hold the {group} heads of a key/value head")


def lower(spec: GatheredAttention, schedule: Schedule) -> Program:
    """The kernel of one (tile of queries, key/value head, batch) per grid point."""
    alone = replace(spec, sink=None)  # it joins in the merge: beside a large one partials are too small to be stored
    with tile.Builder() as builder:
        found, results = inverse.inverse(spec, schedule), partials(spec)
        blocks = spec.value_dim // schedule.value_block if schedule.value_block else 1
        number, batch = tile.program_id(1), tile.program_id(2)
        base = mul(tile.apply(Fn.TRUNCMOD, number, blocks), schedule.value_block) if blocks > 1 else 0
        key_head = tile.apply(Fn.TRUNCDIV, number, blocks)
        at = (batch, key_head if found.sets > 1 else tile.const(0))
        inputs: list[Tensor] = []

        def visit(n: Node) -> Sequence[Node]:  # n is 0: what depends on it stays under the condition
            item = _item(found, at, add(tile.program_id(0), n))
            rows, place = _rows(spec, found, at, item, key_head, builder.axis("m", schedule.rows))
            f = chunks.frame(builder, alone, schedule, rows, batch, Unit(tile.const(0), key_head, rows.head), base)
            _write(f, results, place, softmax.finish(_read(f, item), None))
            inputs.extend(_inputs(alone, f))
            return []

        tile.loop(0, tile.apply(Fn.LT, tile.program_id(0), tile.load(found.used, *at)), 1, [], visit)
        tensors = [*inputs, found.entries, found.tiles, found.used, results.out, results.lse]
        grid = (inverse.tile_count(spec, found), tile.const(spec.kv_heads * blocks), tile.param("B"))
        return builder.program(spec.name, tensors, [(name, "int32") for name in chunks.PARAMS], grid)


def _inputs(spec: GatheredAttention, f: Frame) -> list[Tensor]:
    """What is read of the spec's own tensors."""
    others = {spec.indices, spec.counts, spec.weights, spec.out, spec.lse}
    return [t for t in f.tensors.values() if t.name not in others]


def _item(found: Inverse, at: tuple[Node, Node], number: Node) -> Item:
    """A tile of a set."""
    chunk, count = (tile.load(found.tiles, *at, number, tile.const(k)) for k in range(2))
    return Item(chunk, mul(number, found.per_tile), count)


def _rows(
    spec: GatheredAttention, found: Inverse, at: tuple[Node, Node], item: Item, key_head: Node, axis: Axis
) -> tuple[Rows, Node]:
    """The query rows of a tile, each choice with the heads that share its list, and the place of each row's partial."""
    share = chunks.sharing(spec)
    lane = tile.apply(Fn.TRUNCDIV, tile.iota(axis), share)
    there = tile.apply(Fn.LT, lane, item.count)
    read = tile.load(found.entries, *at, add(item.first, least(lane, found.per_tile - 1)))
    entry = tile.apply(Fn.WHERE, there, read, 0)
    token = tile.apply(Fn.TRUNCDIV, entry, found.per_token)
    local = tile.apply(Fn.TRUNCMOD, tile.iota(axis), share)
    place = tile.apply(Fn.WHERE, there, add(mul(entry, share), local), partial_count(spec))
    if found.lists > 1:
        local = tile.apply(Fn.TRUNCDIV, sub(entry, mul(token, found.per_token)), spec.slots)
    head = add(mul(key_head, spec.heads // spec.kv_heads), local)
    last = add(item.first, sub(item.count, 1))
    ends = [tile.apply(Fn.TRUNCDIV, tile.load(found.entries, *at, x), found.per_token) for x in (item.first, last)]
    token = tile.apply(Fn.WHERE, there, token, tile.param("TQ"))
    return Rows(axis, token, head, tile.const(0), ends[0], 1, {1: tile.param("TQ")}, ends[1]), place


def _read(f: Frame, item: Item) -> list[Node]:
    """The softmax of the chunk's keys."""
    size, state = f.spec.chunk, chunks.start(f)
    if size == f.schedule.block:
        return chunks.joint_step(f, state, *chunks.part_scores(f, item.chunk, tile.const(0)))
    low = mul(item.chunk, size)
    high = add(low, size)
    if size % f.schedule.block == 0:
        return stretch.read(f, Stretch(low, high), state)

    def among(key: Node) -> Node:
        return both(tile.apply(Fn.LE, low, key), tile.apply(Fn.LT, key, high))

    return stretch.read(f, Stretch(low, high, among, aligned=False), state)


def _write(f: Frame, results: Partials, place: Node, found: tuple[list[Node], Node]) -> None:
    """Round and store the partial outputs and their log-sum-exps."""
    outs, lse = found
    at, bounds = (f.batch, f.key_head, place), {2: partial_count(f.spec)}
    for span, out in zip(f.values, outs, strict=True):
        value = tile.cast(out, results.out.dtype)
        tile.store(results.out, *at, span.index(f.value_base), value=value, bounds=dict(bounds))
    tile.store(results.lse, *at, value=lse, bounds=dict(bounds))


def default(spec: GatheredAttention, target: str) -> Schedule:
    """64 rows, or as many as hold a key/value head's heads, and a chunk's keys up to 64 at a time.

    Where 128 registers do without spills, one stage and four programs per multiprocessor hide latency best; at head
    dims of 128 they spill a little outside the loops, which a tuner may find worth it.
    """
    rows = max(64, 1 << (spec.heads // spec.kv_heads - 1).bit_length())
    even = [b for b in (16, 32, 64) if spec.chunk % b == 0]
    block = max(even) if even else min(64, max(16, 1 << (spec.chunk - 1).bit_length()))
    found = Schedule(order="key_outer", rows=rows, block=block, warps=4 if rows <= 64 else 8, stages=2)
    wide = max(spec.head_dim, spec.value_dim) > 64
    if not descriptors.pay(target, spec.dtype, spec.head_dim, spec.value_dim):
        return replace(found, warps=8) if wide else found
    if wide:
        return replace(found, descriptors=True, stages=3)
    return replace(found, descriptors=True, stages=1, registers=128)
