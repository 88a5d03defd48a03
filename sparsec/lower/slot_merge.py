"""The second half of key-outer: every row reads its own chunk beside its neighbours, then adds its other choices."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparsec.lower import chunks, inverse, key_outer, softmax, stretch
from sparsec.lower.chunks import Frame, Unit
from sparsec.lower.key_outer import Partials
from sparsec.lower.rows import Rows, packed
from sparsec.lower.scalars import add, both, ceil_div, most, mul, sub
from sparsec.lower.stretch import Stretch
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: GatheredAttention, schedule: Schedule) -> Program:
    """The kernel of one (tile of neighbouring tokens, key/value head, batch) per grid point."""
    with tile.Builder() as builder:
        group, results = spec.heads // spec.kv_heads, key_outer.partials(spec)
        blocks = spec.value_dim // schedule.value_block if schedule.value_block else 1
        number = tile.program_id(1)
        base = mul(tile.apply(Fn.TRUNCMOD, number, blocks), schedule.value_block) if blocks > 1 else 0
        key_head = _key_head(spec, tile.apply(Fn.TRUNCDIV, number, blocks))
        rows = packed(builder.axis("m", schedule.rows), tile.program_id(0), mul(key_head, group), group)
        unit = Unit(_list(spec, rows, key_head), key_head, rows.head)
        f = chunks.frame(builder, spec, schedule, rows, tile.program_id(2), unit, base)
        own = inverse.own_chunk(spec, rows.token)
        slots = builder.axis("k", 1 << (spec.slots - 1).bit_length())
        outs, lse = _joint(f, results, own, slots) if spec.per == "joint" else (_weigh(f, results, own, slots), None)
        chunks.write(f, outs, lse)
        grid = (ceil_div(tile.param("TQ"), rows.tokens), tile.const(spec.kv_heads * blocks), tile.param("B"))
        return builder.program(
            f"{spec.name}_merge", _tensors(f, results), [(name, "int32") for name in chunks.PARAMS], grid
        )


def _key_head(spec: GatheredAttention, number: Node) -> Node:
    """The last head first: its partial outputs may still be in the cache."""
    return sub(spec.kv_heads - 1, number)


def _tensors(f: Frame, results: Partials) -> list[Tensor]:
    partial = [results.out, results.lse] if f.spec.per == "joint" or f.sink is not None else [results.out]
    return [*f.tensors.values(), *partial]


def _list(spec: GatheredAttention, rows: Rows, key_head: Node) -> Node:
    """The list of each row."""
    if spec.scope == "head":
        return rows.head
    return key_head if spec.scope == "kv_head" else tile.const(0)


def _choice(f: Frame, slot: Node) -> Node:
    """The chunk that each row chose for a slot, -1 where none."""
    place = (f.batch, f.rows.token, f.listed)
    bounds: dict[int, tile.Value] = {1: tile.param("TQ"), 3: f.spec.slots} if slot.axes else {1: tile.param("TQ")}
    ids = tile.load(f.tensors[f.spec.indices], *place, slot, bounds=bounds, other=-1)
    if f.spec.counts is None:
        return ids
    count = tile.load(f.tensors[f.spec.counts], *place, bounds={1: tile.param("TQ")})
    return tile.apply(Fn.WHERE, tile.apply(Fn.LT, slot, count), ids, -1)


def _near(f: Frame, own: Node, slots: Axis) -> tuple[list[Node], Node]:
    """The softmax over each row's own chunk where the row chose it, and which slots chose it ``[m, k]``."""
    chose = tile.apply(Fn.EQ, _choice(f, tile.iota(slots)), own)
    member = tile.reduce("max", tile.apply(Fn.WHERE, chose, 1, 0), slots)
    anyone = tile.apply(Fn.EQ, tile.reduce("max", member, f.rows.axis), 1)
    size = f.spec.chunk
    first, last = (_chunk_at(f, position) for position in (f.rows.first_position, f.rows.last_position))
    low = mul(first, size)
    high = tile.apply(Fn.WHERE, anyone, mul(add(last, 1), size), low)

    def among(key: Node) -> Node:
        return tile.apply(Fn.EQ, tile.apply(Fn.TRUNCDIV, key, size), own)

    near = Stretch(low, high, among, tile.apply(Fn.EQ, first, last), aligned=size % f.schedule.block == 0)
    return stretch.read(f, near, chunks.start(f), tile.apply(Fn.EQ, member, 1)), chose


def _chunk_at(f: Frame, position: Node) -> Node:
    return tile.apply(Fn.TRUNCDIV, most(position, 0), f.spec.chunk)


def _places(f: Frame, own: Node, slot: Node) -> Node:
    """Where the rows' partial outputs of a slot are; PT, out of bounds, where they chose no chunk but their own."""
    spec, chunk = f.spec, _choice(f, slot)
    used = both(tile.apply(Fn.LE, 0, chunk), tile.apply(Fn.NE, chunk, own))
    group = spec.heads // spec.kv_heads
    local = sub(f.rows.head, mul(f.key_head, group))
    by_head = spec.scope == "head"
    row = add(mul(local, spec.slots if by_head else 1), mul(slot, 1 if by_head else group))
    row = add(mul(f.rows.token, group * spec.slots), row)
    return tile.apply(Fn.WHERE, used, row, key_outer.partial_count(spec))


def _partial(f: Frame, results: Partials, place: Node) -> list[Node]:
    """Partial outputs; zero where the place is out of bounds."""
    bounds: dict[int, tile.Value] = {2: key_outer.partial_count(f.spec)}
    return [
        tile.cast(
            tile.load(results.out, f.batch, f.key_head, place, span.index(f.value_base), bounds=bounds), "float32"
        )
        for span in f.values
    ]


def _log_sums(f: Frame, results: Partials, place: Node) -> Node:
    """The log-sum-exps of partial outputs; minus infinity where the place is out of bounds."""
    bounds: dict[int, tile.Value] = {2: key_outer.partial_count(f.spec)}
    return tile.load(results.lse, f.batch, f.key_head, place, bounds=bounds, other=-math.inf)


def _joint(f: Frame, results: Partials, own: Node, slots: Axis) -> tuple[list[Node], Node]:
    """One softmax over all: a partial output counts as one key, its log-sum-exp as the score."""
    places = _places(f, own, tile.iota(slots))
    heights = mul(_log_sums(f, results, places), softmax.LOG2E)
    (*accs, top, total), _ = _near(f, own, slots)
    level = most(top, tile.reduce("max", heights, slots))
    keep, weights = (tile.apply(Fn.EXP2, sub(x, level)) for x in (top, heights))
    total = add(mul(total, keep), tile.reduce("sum", weights, slots))
    outs = _sum(f, results, slots, [mul(acc, keep) for acc in accs], places, weights)
    return softmax.finish([*outs, level, total], f.sink)


def _weigh(f: Frame, results: Partials, own: Node, slots: Axis) -> list[Node]:
    """The weighted sum of outputs."""
    assert f.spec.weights is not None, "a softmax per chunk needs weights"
    state, chose = _near(f, own, slots)
    places = _places(f, own, tile.iota(slots))
    at = (f.batch, f.rows.token, f.listed, tile.iota(slots))
    given = tile.load(f.tensors[f.spec.weights], *at, bounds={1: tile.param("TQ"), 3: f.spec.slots})
    weight = tile.reduce("sum", tile.apply(Fn.WHERE, chose, given, 0.0), slots)
    outs = [mul(out, weight) for out in softmax.finish(state, f.sink)[0]]
    elsewhere = tile.apply(Fn.LT, places, key_outer.partial_count(f.spec))
    given = given if f.sink is None else mul(given, _beside(f.sink, _log_sums(f, results, places)))
    return _sum(f, results, slots, outs, places, tile.apply(Fn.WHERE, elsewhere, given, 0.0))


def _beside(sink: Node, lse: Node) -> Node:
    """The share of keys of this log-sum-exp beside a sink's logit; none where there are no keys."""
    share = tile.apply(Fn.SIGMOID, sub(lse, sink))
    return tile.apply(Fn.WHERE, tile.apply(Fn.LE, lse, -math.inf), 0.0, share)


def _sum(f: Frame, results: Partials, slots: Axis, outs: list[Node], places: Node, weights: Node) -> list[Node]:
    """Outputs plus the weighted partial outputs of all slots."""

    def visit(slot: Node, *carried: Node) -> Sequence[Node]:
        this = tile.apply(Fn.EQ, tile.iota(slots), slot)
        place = tile.reduce("max", tile.apply(Fn.WHERE, this, places, 0), slots)
        weight = tile.reduce("sum", tile.apply(Fn.WHERE, this, weights, 0.0), slots)
        return [add(acc, mul(out, weight)) for acc, out in zip(carried, _partial(f, results, place), strict=True)]

    return tile.loop(0, f.spec.slots, 1, outs, visit)
