"""The chunks that any token of a query tile chose, ascending, and which of its tokens chose each: O(T k) in size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.gathered import chunks
from sparsec.lower.lowered import Scratch
from sparsec.lower.scalars import add, both, ceil_div, least, mul
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule

NONE = 2**31 - 1
"""Stands for "no chunk" where the smallest id is looked for."""

STRIDE = 8
"""Entries found between two looks at whether any is left."""


@dataclass(frozen=True, slots=True)
class Union:
    """Where the union of each query tile lies.

    Attributes:
        ids: ascending chunk ids ``[B, HS, tiles, entries]``, of which ``counts`` ``[B, HS, tiles]`` are there.
        members: bit t of word w: token ``32 w + t`` of the tile chose the entry ``[B, HS, tiles, entries, words]``.
        weights: each token's weights in the order of the union ``[B, TQ, HS, k]``; None where the spec has none.
        tokens: the number of tokens in a tile.
    """

    ids: Tensor
    counts: Tensor
    members: Tensor
    weights: Tensor | None
    tokens: int


def union(spec: GatheredAttention, schedule: Schedule) -> Union:
    """The buffers of one spec under one schedule."""
    tokens, heads = schedule.rows // chunks.sharing(spec), chunks.lists(spec)
    lead: tuple[str | int, ...] = ("B", heads, "UT")
    entries = tokens * spec.slots
    weights = Tensor(f"{spec.name}_union_weights", "float32", ("B", "TQ", heads, spec.slots))
    return Union(
        Tensor(f"{spec.name}_union_ids", "int32", (*lead, entries)),
        Tensor(f"{spec.name}_union_counts", "int32", lead),
        Tensor(f"{spec.name}_union_members", "int32", (*lead, entries, -(-tokens // 32))),
        weights if spec.weights is not None else None,
        tokens,
    )


def params(spec: GatheredAttention, schedule: Schedule) -> tuple[tuple[str, Expr], ...]:
    """The number of query tiles."""
    tokens = union(spec, schedule).tokens
    return (("UT", (var("TQ") + (tokens - 1)) // tokens),)


def scratch(spec: GatheredAttention, schedule: Schedule) -> tuple[Scratch, ...]:
    """The buffers to allocate."""
    found = union(spec, schedule)
    tensors = [t for t in (found.ids, found.counts, found.members, found.weights) if t is not None]
    return tuple(
        Scratch(t.name, tuple(var(d) if isinstance(d, str) else constant(d) for d in t.shape), t.dtype) for t in tensors
    )


def lower(spec: GatheredAttention, schedule: Schedule) -> Program:
    """One (query tile, list, batch) per grid point: the next larger id again and again, until none is left."""
    with tile.Builder() as builder:
        found = union(spec, schedule)
        tokens = builder.axis("t", 1 << (found.tokens - 1).bit_length())
        slots = builder.axis("k", 1 << (spec.slots - 1).bit_length())
        buffers = chunks.tensors(spec)
        program = (tile.program_id(2), tile.program_id(1), tile.program_id(0))
        ids = _ids(spec, buffers, program, found.tokens, tile.iota(tokens), tile.iota(slots))
        _walk(found, program, tile.apply(Fn.WHERE, tile.apply(Fn.LE, 0, ids), ids, NONE), tokens, slots)
        sources = [buffers[name] for name in (spec.indices, spec.counts) if name is not None]
        if spec.weights is not None:
            _sort_weights(spec, buffers, found, program, ids)
            sources.append(buffers[spec.weights])
        results = [t for t in (found.ids, found.counts, found.members, found.weights) if t is not None]
        grid = (ceil_div(tile.param("TQ"), found.tokens), tile.const(chunks.lists(spec)), tile.param("B"))
        params = [(name, "int32") for name in chunks.PARAMS]
        return builder.program(f"{spec.name}_union", [*sources, *results], params, grid)


def _ids(
    spec: GatheredAttention, buffers: dict[str, Tensor], program: Sequence[Node], tokens: int, token: Node, slot: Node
) -> Node:
    """The chosen ids of some tokens and slots of the tile, -1 where there is none."""
    batch, listed, number = program
    first = mul(number, tokens)
    end, row = least(tile.param("TQ"), add(first, tokens)), add(first, token)
    bounds: dict[int, tile.Value] = {1: end, 3: spec.slots}
    ids = tile.load(buffers[spec.indices], batch, row, listed, slot, bounds=bounds, other=-1)
    if spec.counts is None:
        return ids
    count = tile.load(buffers[spec.counts], batch, row, listed, bounds={1: end})
    return tile.apply(Fn.WHERE, tile.apply(Fn.LT, slot, count), ids, -1)


def _walk(found: Union, program: Sequence[Node], ids: Node, tokens: Axis, slots: Axis) -> None:
    """Write the entries of one tile in ascending order; rounds after the last id do nothing."""
    entries = found.ids.shape[-1]
    assert isinstance(entries, int)

    def visit(_: Node, last: Node, count: Node) -> Sequence[Node]:
        above = tile.apply(Fn.WHERE, tile.apply(Fn.LT, last, ids), ids, NONE)
        chunk = tile.reduce("min", tile.reduce("min", above, slots), tokens)
        there = tile.apply(Fn.LT, chunk, NONE)
        place = (*program, tile.apply(Fn.WHERE, there, count, entries))
        tile.store(found.ids, *place, value=chunk, bounds={3: entries})
        chose = tile.reduce("max", tile.apply(Fn.WHERE, tile.apply(Fn.EQ, ids, chunk), 1, 0), slots)
        for word in range(-(-found.tokens // 32)):
            value = tile.reduce("sum", _bits(chose, tokens, word), tokens)
            tile.store(found.members, *place, tile.const(word), value=value, bounds={3: entries})
        return [chunk, add(count, tile.apply(Fn.WHERE, there, 1, 0))]

    def rounds(_: Node, last: Node, count: Node) -> Sequence[Node]:
        left = tile.apply(Fn.WHERE, tile.apply(Fn.LT, last, NONE), STRIDE, 0)
        return tile.loop(0, left, 1, [last, count], visit)

    _, count = tile.loop(0, -(-entries // STRIDE), 1, [tile.const(-1), tile.const(0)], rounds)
    tile.store(found.counts, *program, value=count)


def _bits(chose: Node, tokens: Axis, word: int) -> Node:
    """``chose`` of each token at its place in a word of 32."""
    token = tile.iota(tokens)
    bits = tile.apply(Fn.SHL, chose, tile.apply(Fn.TRUNCMOD, token, 32))
    if tokens.size <= 32:
        return bits
    return tile.apply(Fn.WHERE, tile.apply(Fn.EQ, tile.apply(Fn.TRUNCDIV, token, 32), word), bits, 0)


def _sort_weights(
    spec: GatheredAttention, buffers: dict[str, Tensor], found: Union, program: Sequence[Node], ids: Node
) -> None:
    """Store each token's weights by ascending chunk: a slot's place is the number of smaller ids in its list."""
    assert spec.weights is not None and found.weights is not None
    tokens, slots = ids.axes
    batch, listed, number = program
    first = mul(number, found.tokens)
    row, end = add(first, tile.iota(tokens)), least(tile.param("TQ"), add(first, found.tokens))

    def visit(slot: Node, place: Node) -> Sequence[Node]:
        other = _ids(spec, buffers, program, found.tokens, tile.iota(tokens), slot)
        smaller = both(tile.apply(Fn.LT, other, ids), tile.apply(Fn.LE, 0, other))
        return [add(place, tile.apply(Fn.WHERE, smaller, 1, 0))]

    (place,) = tile.loop(0, spec.slots, 1, [tile.full(0, tokens, slots, dtype="int32")], visit)
    place = tile.apply(Fn.WHERE, tile.apply(Fn.LE, 0, ids), place, spec.slots)
    bounds: dict[int, tile.Value] = {1: end, 3: spec.slots}
    weights = tile.load(buffers[spec.weights], batch, row, listed, tile.iota(slots), bounds=bounds)
    tile.store(found.weights, batch, row, listed, place, value=weights, bounds=bounds)
