"""Gradients of the queries and chunk weights of gathered attention, query-outer: a program per token walks its list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

from sparsec.lower.gathered import chunk_grad, chunks
from sparsec.lower.gathered.chunk_grad import Arrived, Scored
from sparsec.lower.gathered.chunks import Frame, Unit
from sparsec.lower.gathered.query_outer import chunk_at, count, packed_scores, row_tile, scores_at, tiles
from sparsec.lower.rows import Rows
from sparsec.lower.scalars import add, both, ceil_div, mul
from sparsec.plan.grad_specs import GatheredGradQ
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Pull:
    """One program's frame and what arrives at its rows.

    Attributes:
        slots: an axis that holds a list.
        weights: where the gradients of weights go, ``[B, TQ, parts, K]``; None where not asked for.
        wanted: whether the gradient of the queries is.
    """

    f: Frame
    a: Arrived
    slots: Axis
    weights: Tensor | None
    wanted: bool


def lower(spec: GatheredGradQ, schedule: Schedule, weights: Tensor | None) -> Program:
    """The kernel of one (token, row tile, batch) per grid point; ``weights`` takes ``[B, TQ, row tiles, K]``."""
    with tile.Builder() as builder:
        forward, number = spec.forward, tile.program_id(1)
        rows, at = row_tile(builder, forward, schedule, number)
        pull, tensors = begin(builder, spec, schedule, rows, at, weights)
        if forward.per == "joint":
            grads = _joint(pull)
        else:
            shares, *grads = _per_chunk(pull)
            if weights is not None:
                place = (tile.program_id(2), tile.program_id(0), number, tile.iota(pull.slots))
                tile.store(weights, *place, value=shares, bounds={3: forward.slots})
        write(pull, spec, tensors, grads)
        grid = (tile.param("TQ"), tile.const(tiles(spec.forward, schedule)), tile.param("B"))
        params = [(name, "int32") for name in chunks.PARAMS]
        return builder.program(spec.name, list(tensors.values()), params, grid)


def begin(
    builder: tile.Builder, spec: GatheredGradQ, schedule: Schedule, rows: Rows, at: Unit, weights: Tensor | None
) -> tuple[Pull, dict[str, Tensor]]:
    """What a program reads, and its tensors by name in launch order."""
    forward = spec.forward if spec.forward.per == "chunk" else replace(spec.forward, sink=None)  # it is in the lse
    f = chunks.frame(builder, forward, schedule, rows, tile.program_id(2), at, 0)
    tensors = inputs(spec, f.tensors)
    out = tensors[forward.out] if spec.dots else None
    a = chunk_grad.arrived(f, tensors[spec.grad], None if spec.delta is None else tensors[spec.delta], out)
    if spec.grad_q is not None:
        shape: tuple[int | str, ...] = ("B", "TQ", forward.heads, forward.head_dim)
        tensors |= {name: Tensor(name, "float32", shape) for name in spec.terms}
        tensors[spec.grad_q] = Tensor(spec.grad_q, spec.out_dtype, shape)
    if weights is not None:
        tensors[weights.name] = weights
    slots = builder.axis("s", 1 << (forward.slots - 1).bit_length())
    return Pull(f, a, slots, weights, spec.grad_q is not None), tensors


def inputs(spec: GatheredGradQ, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a kernel reads, in launch order."""
    forward = spec.forward
    tensors = {name: t for name, t in found.items() if name != forward.out or spec.dots}
    wide: tuple[int | str, ...] = ("B", "TQ", forward.heads, forward.value_dim)
    tensors[spec.grad] = Tensor(spec.grad, spec.grad_dtype, wide)
    if spec.delta is not None:
        tensors[spec.delta] = Tensor(spec.delta, "float32", wide[:3])
    return tensors


def start(pull: Pull) -> list[Node]:
    """The queries' gradients before any key; none where they are not asked for."""
    return [tile.full(0.0, pull.f.rows.axis, d.axis) for d in pull.f.dims] if pull.wanted else []


def _joint(pull: Pull) -> list[Node]:
    """Over all chosen chunks; several share a tile of keys where they are small."""
    f, parts = pull.f, chunks.parts(pull.f)
    packed = f.schedule.block > f.spec.chunk and f.schedule.block % f.spec.chunk == 0

    def score(n: Node) -> Scored:
        if packed:
            return packed_scores(f, n)
        part = tile.apply(Fn.TRUNCMOD, n, parts) if parts > 1 else tile.const(0)
        return scores_at(f, chunk_at(f, tile.apply(Fn.TRUNCDIV, n, parts)), part)

    def visit(n: Node, *grads: Node) -> Sequence[Node]:
        scored = score(n)
        return add_keys(pull, grads, scored[0], chunk_grad.joint(f, pull.a, scored)[1])

    steps = ceil_div(count(f), f.schedule.block // f.spec.chunk) if packed else mul(count(f), parts)
    return tile.loop(0, steps, 1, start(pull), visit, f.schedule.stages)


def add_keys(pull: Pull, grads: Sequence[Node], key: Node, ds: Node) -> list[Node]:
    """The queries' gradients after one more key tile, without the scale."""
    f = pull.f
    dr = chunk_grad.through(f, key, ds)
    result = []
    for acc, span in zip(grads, f.dims, strict=True):
        k = chunks.read(f, f.spec.k, key, span.index())
        result.append(tile.dot(tile.cast(dr, k.dtype), k, f.keys, acc, f.schedule.precision))
    return result


def _per_chunk(pull: Pull) -> list[Node]:
    """Through the softmax inside each chunk: gradients of the list's weights, then of the queries."""
    f = pull.f
    assert f.spec.weights is not None, "a softmax per chunk needs weights"
    weights = f.tensors[f.spec.weights]

    def visit(slot: Node, shares: Node, *grads: Node) -> Sequence[Node]:
        chunk = chunk_at(f, slot)
        used = tile.apply(Fn.LE, 0, chunk)
        weight = tile.apply(Fn.WHERE, used, tile.load(weights, f.batch, f.rows.token, f.listed, slot), 0.0)
        found = chunk_grad.own_softmax(f, pull.a, lambda part: scores_at(f, chunk, part))
        mean = tile.apply(Fn.WHERE, _real(f, used), found.mean, 0.0)
        here = tile.apply(Fn.EQ, tile.iota(pull.slots), slot)
        shares = add(shares, tile.apply(Fn.WHERE, here, tile.reduce("sum", mean, f.rows.axis), 0.0))

        def part_step(part: Node, *inner: Node) -> Sequence[Node]:
            scored = scores_at(f, chunk, part)
            return add_keys(pull, inner, scored[0], chunk_grad.own(f, pull.a, found, scored, weight)[1])

        if not pull.wanted:
            return [shares]
        if chunks.parts(f) == 1:
            return [shares, *part_step(tile.const(0), *grads)]
        return [shares, *tile.loop(0, chunks.parts(f), 1, list(grads), part_step, f.schedule.stages)]

    stages = f.schedule.stages if chunks.parts(f) == 1 else None
    return tile.loop(0, count(f), 1, [tile.full(0.0, pull.slots), *start(pull)], visit, stages)


def _real(f: Frame, used: Node) -> Node:
    """Which rows are heads that read a chunk."""
    limit = f.rows.bounds.get(2)
    return used if limit is None else both(tile.apply(Fn.LT, f.rows.head, limit), used)


def write(pull: Pull, spec: GatheredGradQ, tensors: dict[str, Tensor], grads: Sequence[Node]) -> None:
    """Scale, round and store the queries' gradients where they are asked for."""
    f = pull.f
    for span, grad in zip(f.dims if pull.wanted else [], grads, strict=True):
        assert spec.grad_q is not None
        place = f.rows.place(f.batch, span.index())
        others = [tile.load(tensors[name], *place, bounds=dict(f.rows.bounds)) for name in spec.terms]
        value = tile.cast(reduce(add, others, mul(grad, f.spec.scale)), spec.out_dtype)
        tile.store(tensors[spec.grad_q], *place, value=value, bounds=f.rows.bounds)
