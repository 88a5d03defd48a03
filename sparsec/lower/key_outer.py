"""Attention over chosen chunks, key-outer: a program gathers queries that chose one chunk and reads the chunk once.

Pays where neighbouring queries choose different chunks and few heads share a list. Every choice gives a partial output
and log-sum-exp; ``sparsec.lower.inverse`` finds who chose a chunk, ``sparsec.lower.slot_merge`` puts partials together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sparsec.lower import chunks, inverse, softmax, stretch
from sparsec.lower.chunks import Frame, Unit
from sparsec.lower.inverse import Inverse, as_scratch
from sparsec.lower.lowered import Scratch
from sparsec.lower.rows import Rows
from sparsec.lower.scalars import add, both, most, mul
from sparsec.lower.stretch import Stretch
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule, ScheduleError


@dataclass(frozen=True, slots=True)
class Partials:
    """What every choice of every head gives: outputs ``[B, TQ, H, k, DV]``, log-sum-exps ``[B, TQ, H, k]`` fp32.

    Choices that are none, and those of a token's own chunk, are left as they are.
    """

    out: Tensor
    lse: Tensor


@dataclass(frozen=True, slots=True)
class Item:
    """A tile of queries that chose a chunk: entries ``first … first + count - 1``; none where ``count`` is 0."""

    chunk: Node
    first: Node
    count: Node


def partials(spec: GatheredAttention) -> Partials:
    """The buffers of one spec; outputs are rounded to its dtype, whose errors average out in the merge."""
    lead: tuple[str | int, ...] = ("B", "TQ", spec.heads, spec.slots)
    return Partials(
        Tensor(f"{spec.name}_partial", spec.dtype, (*lead, spec.value_dim)),
        Tensor(f"{spec.name}_partial_lse", "float32", lead),
    )


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
    alone = replace(spec, sink=None) if spec.per == "joint" else spec
    with tile.Builder() as builder:
        found, results = inverse.inverse(spec, schedule), partials(spec)
        blocks = spec.value_dim // schedule.value_block if schedule.value_block else 1
        number, batch = tile.program_id(1), tile.program_id(2)
        base = mul(tile.apply(Fn.TRUNCMOD, number, blocks), schedule.value_block) if blocks > 1 else 0
        key_head = tile.apply(Fn.TRUNCDIV, number, blocks)
        at = (batch, key_head if found.sets > 1 else tile.const(0))
        item = _item(found, at)
        rows, slot = _rows(spec, found, at, item, key_head, builder.axis("m", schedule.rows))
        unit = Unit(tile.const(0), key_head, rows.head)
        f = chunks.frame(builder, alone, schedule, rows, batch, unit, base)
        _write(f, results, slot, softmax.finish(_read(f, item), f.sink is not None))
        grid = (inverse.tile_count(spec, found), tile.const(spec.kv_heads * blocks), tile.param("B"))
        tensors = [*_inputs(alone, f), found.entries, found.tiles, found.used, results.out, results.lse]
        return builder.program(spec.name, tensors, [(name, "int32") for name in chunks.PARAMS], grid)


def _inputs(spec: GatheredAttention, f: Frame) -> list[Tensor]:
    """What is read of the spec's own tensors."""
    others = {spec.indices, spec.counts, spec.weights, spec.out, spec.lse}
    return [t for t in f.tensors.values() if t.name not in others]


def _item(found: Inverse, at: tuple[Node, Node]) -> Item:
    """The tile of this program; those past the last are empty."""
    number = tile.program_id(0)
    there = tile.apply(Fn.LT, number, tile.load(found.used, *at))
    fields = [tile.load(found.tiles, *at, number, tile.const(k)) for k in range(3)]
    return Item(*(tile.apply(Fn.WHERE, there, x, 0) for x in fields))


def _rows(
    spec: GatheredAttention, found: Inverse, at: tuple[Node, Node], item: Item, key_head: Node, axis: Axis
) -> tuple[Rows, Node]:
    """The query rows of a tile, each choice with the heads that share its list, and the slot of each row's choice."""
    share, end = chunks.sharing(spec), add(item.first, item.count)
    lane = tile.apply(Fn.TRUNCDIV, tile.iota(axis), share)
    place = add(item.first, lane)
    entry = tile.load(found.entries, *at, place, bounds={2: end})
    there = both(tile.apply(Fn.LT, place, end), tile.apply(Fn.LT, lane, found.per_tile))
    per_token = found.lists * spec.slots
    token = tile.apply(Fn.WHERE, there, tile.apply(Fn.TRUNCDIV, entry, per_token), tile.param("TQ"))
    local = tile.apply(Fn.TRUNCMOD, tile.iota(axis), share)
    if found.lists > 1:
        local = tile.apply(Fn.TRUNCMOD, tile.apply(Fn.TRUNCDIV, entry, spec.slots), found.lists)
    head = add(mul(key_head, spec.heads // spec.kv_heads), local)
    first, last = (_token(found, at, x, per_token) for x in (item.first, most(add(end, -1), 0)))
    rows = Rows(axis, token, head, tile.const(0), first, 1, {1: tile.param("TQ")}, last)
    return rows, tile.apply(Fn.TRUNCMOD, entry, spec.slots)


def _token(found: Inverse, at: tuple[Node, Node], place: Node, per_token: int) -> Node:
    return tile.apply(Fn.TRUNCDIV, tile.load(found.entries, *at, place), per_token)


def _read(f: Frame, item: Item) -> list[Node]:
    """The softmax of the chunk's keys; nothing is read for an empty tile."""
    size, state = f.spec.chunk, chunks.start(f)
    if size == f.schedule.block:
        return chunks.joint_step(f, state, *chunks.part_scores(f, item.chunk, tile.const(0)))
    low = mul(item.chunk, size)
    high = tile.apply(Fn.WHERE, tile.apply(Fn.LT, 0, item.count), add(low, size), low)
    if size % f.schedule.block == 0:
        return stretch.read(f, Stretch(low, high), state)

    def among(key: Node) -> Node:
        return both(tile.apply(Fn.LE, low, key), tile.apply(Fn.LT, key, high))

    return stretch.read(f, Stretch(low, high, among, aligned=False), state)


def _write(f: Frame, results: Partials, slot: Node, found: tuple[list[Node], Node]) -> None:
    """Round and store the partial outputs and their log-sum-exps."""
    outs, lse = found
    for span, out in zip(f.values, outs, strict=True):
        place = f.rows.place(f.batch, slot, span.index(f.value_base))
        tile.store(results.out, *place, value=tile.cast(out, results.out.dtype), bounds=f.rows.bounds)
    tile.store(results.lse, *f.rows.place(f.batch, slot), value=lse, bounds=f.rows.bounds)
