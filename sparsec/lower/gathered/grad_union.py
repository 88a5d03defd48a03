"""Gradients of the queries and chunk weights of gathered attention, tile-union: neighbours read each chunk once.

Under a common softmax a bit of the union says whether a row takes part. Where chunks have weights every row has its own
list at hand: which of its slots chose a chunk says that, with which weight, and where the weight's gradient goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sparsec.lower import softmax
from sparsec.lower.gathered import chunk_grad, chunks, tile_union, union_list
from sparsec.lower.gathered.grad import Pull, add_keys, begin, start, write
from sparsec.lower.gathered.union_list import Union
from sparsec.lower.rows import packed
from sparsec.lower.scalars import add, both, ceil_div, mul
from sparsec.plan.grad_specs import GatheredGradQ
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def listing(spec: GatheredGradQ) -> GatheredAttention:
    """The spec whose lists are united, under the backward kernel's name; weights stay in their lists."""
    return replace(spec.forward, name=spec.name, weights=None)


def lower(spec: GatheredGradQ, schedule: Schedule, weights: Tensor | None) -> Program:
    """The kernel of one (query tile, unit of heads, batch) per grid point; ``weights`` takes ``[B, TQ, H, K]``."""
    with tile.Builder() as builder:
        share, found = chunks.sharing(spec.forward), union_list.union(listing(spec), schedule)
        at = chunks.unit(spec.forward, tile.program_id(1))
        rows = packed(builder.axis("m", schedule.rows), tile.program_id(0), at.head, share)
        pull, tensors = begin(builder, spec, schedule, rows, at, weights)
        if spec.forward.per == "joint":
            grads = _joint(pull, found)
        else:
            shares, *grads = _per_chunk(pull, found)
            if weights is not None:
                place = (*rows.place(pull.f.batch), tile.iota(pull.slots))
                tile.store(weights, *place, value=shares, bounds={1: tile.param("TQ"), 3: spec.forward.slots})
        write(pull, spec, tensors, grads)
        grid = (ceil_div(tile.param("TQ"), found.tokens), tile.const(spec.forward.heads // share), tile.param("B"))
        params = [(name, "int32") for name in chunks.PARAMS]
        if spec.forward.per == "joint":
            listed = {spec.forward.indices, spec.forward.counts}
            read = [*(t for n, t in tensors.items() if n not in listed), found.ids, found.counts, found.members]
        else:
            read = [*tensors.values(), found.ids, found.counts]
        return builder.program(spec.name, read, params, grid)


def _tile(pull: Pull) -> tuple[Node, Node, Node]:
    """The place of this tile's union."""
    return pull.f.batch, pull.f.listed, tile.program_id(0)


def _here(pull: Pull, chunk: Node) -> Node:
    """Which slots ``[m, s]`` of the rows' lists chose a chunk."""
    f = pull.f
    slot, place = tile.iota(pull.slots), (f.batch, f.rows.token, f.listed)
    bounds: dict[int, tile.Value] = {1: tile.param("TQ"), 3: f.spec.slots}
    ids = tile.load(f.tensors[f.spec.indices], *place, slot, bounds=bounds, other=-1)
    here = tile.apply(Fn.EQ, ids, chunk)
    if f.spec.counts is None:
        return here
    counts = tile.load(f.tensors[f.spec.counts], *place, bounds={1: tile.param("TQ")})
    return both(here, tile.apply(Fn.LT, slot, counts))


def _joint(pull: Pull, found: Union) -> list[Node]:
    """Over the chunks of the union; a row that did not choose one gives its pairs no weight."""
    f, parts = pull.f, chunks.parts(pull.f)
    assert pull.a.lse is not None
    height = pull.a.lse

    def visit(n: Node, *grads: Node) -> Sequence[Node]:
        entry = tile.apply(Fn.TRUNCDIV, n, parts)
        chunk = tile.load(found.ids, *_tile(pull), entry)
        part = tile.apply(Fn.TRUNCMOD, n, parts) if parts > 1 else tile.const(0)
        scored = chunks.part_scores(f, chunk, part)
        level = tile.apply(Fn.WHERE, tile_union.member(f, found, entry), height, -softmax.HIDDEN)
        return add_keys(pull, grads, scored[0], chunk_grad.joint(f, replace(pull.a, lse=level), scored)[1])

    steps = mul(tile.load(found.counts, *_tile(pull)), parts)
    return tile.loop(0, steps, 1, start(pull), visit, f.schedule.stages)


def _per_chunk(pull: Pull, found: Union) -> list[Node]:
    """Gradients of each row's own weights ``[m, s]``, then of the queries."""
    f, parts = pull.f, chunks.parts(pull.f)
    assert f.spec.weights is not None, "a softmax per chunk needs weights"
    bounds: dict[int, tile.Value] = {1: tile.param("TQ"), 3: f.spec.slots}
    place = (f.batch, f.rows.token, f.listed, tile.iota(pull.slots))
    given = tile.load(f.tensors[f.spec.weights], *place, bounds=bounds)

    def visit(entry: Node, shares: Node, *grads: Node) -> Sequence[Node]:
        chunk = tile.load(found.ids, *_tile(pull), entry)
        here = _here(pull, chunk)
        weight = tile.reduce("sum", tile.apply(Fn.WHERE, here, given, 0.0), pull.slots)
        own = chunk_grad.own_softmax(f, pull.a, lambda part: chunks.part_scores(f, chunk, part))
        shares = add(shares, tile.apply(Fn.WHERE, here, own.mean, 0.0))

        def part_step(part: Node, *inner: Node) -> Sequence[Node]:
            scored = chunks.part_scores(f, chunk, part)
            return add_keys(pull, inner, scored[0], chunk_grad.own(f, pull.a, own, scored, weight)[1])

        if not pull.wanted:
            return [shares]
        if parts == 1:
            return [shares, *part_step(tile.const(0), *grads)]
        return [shares, *tile.loop(0, parts, 1, list(grads), part_step, f.schedule.stages)]

    state = [tile.full(0.0, f.rows.axis, pull.slots), *start(pull)]
    count = tile.load(found.counts, *_tile(pull))
    return tile.loop(0, count, 1, state, visit, f.schedule.stages if parts == 1 else None)
