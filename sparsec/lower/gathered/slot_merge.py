"""The second half of key-outer: every row adds up its choices, then reads its own chunk beside its neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sparsec.lower import softmax
from sparsec.lower.gathered import chunks, partials, stretch
from sparsec.lower.gathered.chunks import Frame, Unit
from sparsec.lower.gathered.partials import Partials
from sparsec.lower.gathered.stretch import Stretch
from sparsec.lower.inverse import index as inverse
from sparsec.lower.rows import Rows, packed
from sparsec.lower.scalars import add, both, ceil_div, most, mul, sub
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule

TOGETHER = 2
"""So many partial outputs of a row are under way at once, more one after the other: registers hold no more."""


def is_little(spec: GatheredAttention) -> bool:
    """Whether the merge adds at most two partial outputs, and no sink, to what is known to be a row's own chunk."""
    return spec.own_first and spec.per == "joint" and spec.slots <= 3 and spec.sink is None and spec.out_dtype is None


def schedule(spec: GatheredAttention, before: Schedule) -> Schedule:
    """How the merge runs after a first half under ``before``; it keeps a maximum, since some rows see few keys, and
    its warps have no roles."""
    if before.maximum and not before.producer:
        return replace(before, stages=1) if before.descriptors and before.rows < 128 else before
    block = max((b for b in (16, 32, 64) if spec.chunk % b == 0), default=before.block)
    own = replace(before, block=block, maximum=True, producer=False)
    if before.producer:  # its tiles are its own: 128 rows took 0.83 ms where 64 take 0.56 (eight slots)
        rows = max(64, 1 << (spec.heads // spec.kv_heads - 1).bit_length())
        own = replace(own, rows=rows, warps=4 if rows <= 64 else 8)
    if is_little(spec) and max(spec.head_dim, spec.value_dim) <= 128:
        return replace(own, rows=max(128, own.rows), warps=8, stages=2, registers=128)
    return replace(own, stages=1, registers=0)


def lower(spec: GatheredAttention, schedule: Schedule) -> Program:
    """The kernel of one (tile of neighbouring tokens, key/value head, batch) per grid point."""
    with tile.Builder() as builder:
        group, results = spec.heads // spec.kv_heads, partials.partials(spec, schedule)
        blocks = spec.value_dim // schedule.value_block if schedule.value_block else 1
        number = tile.program_id(1)
        base = mul(tile.apply(Fn.TRUNCMOD, number, blocks), schedule.value_block) if blocks > 1 else 0
        key_head = _key_head(spec, tile.apply(Fn.TRUNCDIV, number, blocks))
        rows = packed(builder.axis("m", schedule.rows), tile.program_id(0), mul(key_head, group), group)
        unit = Unit(_list(spec, rows, key_head), key_head, rows.head)
        f = chunks.frame(builder, spec, schedule, rows, tile.program_id(2), unit, base)
        own = inverse.own_chunk(spec, rows.token)
        others = _others(f, own, builder.axis("k", 1 << (spec.slots - 1).bit_length()))
        outs, lse = _joint(f, results, others) if spec.per == "joint" else (_weigh(f, results, others), None)
        chunks.write(f, outs, lse)
        grid = (ceil_div(tile.param("TQ"), rows.tokens), tile.const(spec.kv_heads * blocks), tile.param("B"))
        return builder.program(
            f"{spec.name}_merge", _tensors(f, results), [(name, "int32") for name in chunks.PARAMS], grid
        )


def _key_head(spec: GatheredAttention, number: Node) -> Node:
    """The last head first: its partial outputs may still be in the cache."""
    return sub(spec.kv_heads - 1, number)


def _tensors(f: Frame, results: Partials) -> list[Tensor]:
    read = [t for t in results.tensors if t is not results.lse or f.spec.per == "joint" or f.sink is not None]
    return [*f.tensors.values(), *read]


def _list(spec: GatheredAttention, rows: Rows, key_head: Node) -> Node:
    """The list of each row."""
    if spec.scope == "head":
        return rows.head
    return key_head if spec.scope == "kv_head" else tile.const(0)


@dataclass(frozen=True, slots=True)
class Others:
    """What each row chose: its own chunk, which is read here, and others, which have partial outputs.

    Attributes:
        own: the row's own chunk ``[m]``; -1 where it is known that there is none.
        member: whether the row chose it ``[m]``, 0 or 1; None where all do that have one.
        slots: the slots of the list, some more at the end of the axis.
        near: which are of the row's own chunk ``[m, k]``.
        used: which are of another ``[m, k]``.
    """

    own: Node
    member: Node | None
    slots: Axis
    near: Node
    used: Node


def _others(f: Frame, own: Node, slots: Axis) -> Others:
    chosen = _choice(f, tile.iota(slots))
    some, near = tile.apply(Fn.LE, 0, chosen), tile.apply(Fn.EQ, chosen, own)
    member = None
    if f.spec.own_first:
        own = tile.apply(Fn.WHERE, tile.apply(Fn.LT, add(f.rows.token, tile.param("q_offset")), 0), -1, own)
    else:
        member = tile.reduce("max", tile.apply(Fn.WHERE, near, 1, 0), slots)
    return Others(own, member, slots, near, both(some, tile.apply(Fn.NE, chosen, own)))


def _choice(f: Frame, slot: Node) -> Node:
    """The chunk that each row chose for a slot, -1 where none."""
    place = (f.batch, f.rows.token, f.listed)
    bounds: dict[int, tile.Value] = {1: tile.param("TQ"), 3: f.spec.slots}
    ids = tile.load(f.tensors[f.spec.indices], *place, slot, bounds=bounds, other=-1)
    if f.spec.counts is None:
        return ids
    count = tile.load(f.tensors[f.spec.counts], *place, bounds={1: tile.param("TQ")})
    return tile.apply(Fn.WHERE, tile.apply(Fn.LT, slot, count), ids, -1)


def _near(f: Frame, others: Others, state: Sequence[Node]) -> list[Node]:
    """The softmax after each row's own chunk where the row chose it."""
    member = others.member
    near = own_stretch(f, others.own, member)
    return stretch.read(f, near, state, None if member is None else tile.apply(Fn.EQ, member, 1))


def own_stretch(f: Frame, own: Node, member: Node | None = None) -> Stretch:
    """The keys of the rows' own chunks; of rows that are no ``member``, if there is one, where any row is."""
    size = f.spec.chunk
    first, last = (_chunk_at(f, position) for position in (f.rows.first_position, f.rows.last_position))
    low, high, clear = mul(first, size), mul(add(last, 1), size), tile.apply(Fn.EQ, first, last)
    if member is None:
        clear = both(clear, tile.apply(Fn.LE, 0, f.rows.first_position))
    else:
        anyone = tile.apply(Fn.EQ, tile.reduce("max", member, f.rows.axis), 1)
        high = tile.apply(Fn.WHERE, anyone, high, low)
    among = _of_own(f, own, member is None)
    return Stretch(low, high, among, clear, aligned=size % f.schedule.block == 0)


def _of_own(f: Frame, own: Node, every: bool) -> Callable[[Node], Node]:
    """From keys to which rows' own chunk they are of; ``every`` row that has one chose it."""
    size, position = f.spec.chunk, add(f.rows.token, tile.param("q_offset"))
    if every and size & (size - 1) == 0:  # a negative position differs in its sign
        above = size.bit_length() - 1
        return lambda key: tile.apply(Fn.EQ, tile.apply(Fn.SHR, tile.apply(Fn.XOR, key, position), above), 0)
    return lambda key: tile.apply(Fn.EQ, tile.apply(Fn.TRUNCDIV, key, size), own)


def _chunk_at(f: Frame, position: Node) -> Node:
    return tile.apply(Fn.TRUNCDIV, most(position, 0), f.spec.chunk)


def _place(f: Frame, slot: Node) -> Node:
    """Where the rows' partial outputs of a slot are, if there are any."""
    group, slots = f.spec.heads // f.spec.kv_heads, f.spec.slots
    local = sub(f.rows.head, mul(f.key_head, group))
    by_head = f.spec.scope == "head"
    row = add(mul(local, slots if by_head else 1), mul(slot, 1 if by_head else group))
    return add(mul(f.rows.token, group * slots), row)


def _joint(f: Frame, results: Partials, others: Others) -> tuple[list[Node], Node]:
    """One softmax over all: a partial output counts as one key, its log-sum-exp as the score.

    Its own chunk comes last: what else a row reads is then under way together, before tensor cores hold registers.
    """
    heights = mul(_log_sums(f, results, others), softmax.LOG2E)
    level = most(tile.reduce("max", heights, others.slots), softmax.HIDDEN)
    weights = tile.apply(Fn.EXP2, sub(heights, level))
    outs = _sum(f, results, others, chunks.start(f)[:-2], weights)
    total = tile.reduce("sum", weights, others.slots)
    return softmax.finish(_near(f, others, [*outs, level, total]), f.sink)


def _log_sums(f: Frame, results: Partials, others: Others) -> Node:
    """Log-sum-exps; minus infinity where there is no partial output."""
    found = partials.log_sums(f, results, _place(f, tile.iota(others.slots)))
    return tile.apply(Fn.WHERE, others.used, found, -math.inf)


def _weigh(f: Frame, results: Partials, others: Others) -> list[Node]:
    """The weighted sum of outputs."""
    given = _given(f, tile.iota(others.slots))
    weight = tile.reduce("sum", tile.apply(Fn.WHERE, others.near, given, 0.0), others.slots)
    outs = softmax.finish(_near(f, others, chunks.start(f)), f.sink)[0]
    if f.sink is not None:
        given = mul(given, _beside(f.sink, _log_sums(f, results, others)))
    return _sum(f, results, others, [mul(out, weight) for out in outs], given)


def _given(f: Frame, slot: Node) -> Node:
    """The weights that rows give to a slot."""
    assert f.spec.weights is not None, "a softmax per chunk needs weights"
    bounds: dict[int, tile.Value] = {1: tile.param("TQ"), 3: f.spec.slots}
    return tile.load(f.tensors[f.spec.weights], f.batch, f.rows.token, f.listed, slot, bounds=bounds)


def _beside(sink: Node, lse: Node) -> Node:
    """The share of keys of this log-sum-exp beside a sink's logit; none where there are no keys."""
    share = tile.apply(Fn.SIGMOID, sub(lse, sink))
    return tile.apply(Fn.WHERE, tile.apply(Fn.LE, lse, -math.inf), 0.0, share)


def _sum(f: Frame, results: Partials, others: Others, outs: Sequence[Node], weights: Node) -> list[Node]:
    """Outputs plus the weighted partial outputs of all slots."""
    weights = partials.scaled(f, results, _place(f, tile.iota(others.slots)), weights)
    weights = tile.apply(Fn.WHERE, others.used, weights, 0.0)

    def add_up(slot: Node, *carried: Node) -> Sequence[Node]:
        this = tile.apply(Fn.EQ, tile.iota(others.slots), slot)
        found = _outputs(f, results, others, slot, this)
        weight = tile.reduce("sum", tile.apply(Fn.WHERE, this, weights, 0.0), others.slots)
        return [add(acc, mul(out, weight)) for acc, out in zip(carried, found, strict=True)]

    first = int(f.spec.own_first)
    if f.spec.slots - first > TOGETHER:
        outs = tile.loop(first, f.spec.slots, 1, list(outs), add_up)
    else:
        for slot in range(first, f.spec.slots):
            outs = add_up(tile.const(slot), *outs)
    return tile.loop(0, beyond(f), 1, list(outs), add_up) if first else list(outs)


def beyond(f: Frame) -> Node:
    """Whether some row's own chunk would come after the last one, so that its first slot holds another."""
    return tile.apply(Fn.LE, inverse.chunk_count(f.spec), _chunk_at(f, f.rows.last_position))


def _outputs(f: Frame, results: Partials, others: Others, slot: Node, this: Node) -> list[Node]:
    """The partial outputs of ``this`` slot, where the rows have any; only those are read."""
    used = tile.reduce("max", tile.apply(Fn.WHERE, both(this, others.used), 1, 0), others.slots)
    place = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, used, 1), _place(f, slot), partials.count(f.spec))
    return partials.outputs(f, results, place)
