"""Gradients of the keys and values that gathered attention chose, key-outer.

A program has a key tile of one chunk in registers and walks a share of the queries that chose the chunk, found through
the inverse of the lists. Scores are computed as ``[keys, queries]``, so that no product needs a transposed accumulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsec.lower.gathered import chunk_grad, chunks
from sparsec.lower.gathered.chunk_grad import Scored
from sparsec.lower.gathered.chunks import Frame
from sparsec.lower.gathered.grad_walk import Walk, _rows, begin, frame, grid, turns
from sparsec.lower.inverse import shares
from sparsec.lower.pieces import Span
from sparsec.lower.scalars import add, emit, least, most, mul, sub
from sparsec.plan.grad_specs import GatheredGradKV
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Target:
    """Where a gradient goes: rows of ``out``, or partial sums ``[B, HKV, XT, keys of a chunk, dim]`` in fp32."""

    out: Tensor
    partial: Tensor


def target(spec: GatheredGradKV, schedule: Schedule, name: str, dim: int) -> Target:
    """Of the keys or of the values."""
    keys, heads = -(-spec.forward.chunk // schedule.block) * schedule.block, spec.forward.kv_heads
    out = Tensor(name, spec.out_dtype, ("B", "TK", heads, dim))
    return Target(out, Tensor(f"{spec.name}_{name}parts_of", "float32", ("B", heads, "XT", keys, dim)))


def targets(spec: GatheredGradKV, schedule: Schedule) -> list[Target]:
    """What is asked for, keys first."""
    dims = ((spec.grad_k, spec.forward.head_dim), (spec.grad_v, spec.forward.value_dim))
    return [target(spec, schedule, name, dim) for name, dim in dims if name is not None]


def programs(spec: GatheredGradKV, schedule: Schedule) -> list[Program]:
    """Both gradients at once; under the order ``apart`` one after the other, with half the accumulators each."""
    if schedule.order != "apart" or not (spec.grad_k and spec.grad_v):
        return [lower(spec, schedule, spec.name)]
    halves = {"k": replace(spec, grad_v=None), "v": replace(spec, grad_k=None)}
    return [lower(half, schedule, f"{spec.name}_{letter}") for letter, half in halves.items()]


def lower(spec: GatheredGradKV, schedule: Schedule, name: str) -> Program:
    """The kernel of one (share and part of a chunk, key/value head, batch) per grid point."""
    with tile.Builder() as builder:
        walk = begin(builder, spec, schedule)
        wanted, sums = targets(spec, schedule), _sums(walk)
        for goal, spread in zip(wanted, _spreads(walk), strict=True):
            _write(walk, goal, spread, [sums.pop(0) for _ in spread])
        listed, outs = shares.buffer(walk.spec, walk.found), [t for w in wanted for t in (w.out, w.partial)]
        tensors, params = [*walk.sources.values(), walk.found.entries, listed, *outs], shares.PARAMS
        return builder.program(name, tensors, [(param, "int32") for param in params], grid(walk.spec, schedule))


def _spreads(walk: Walk) -> list[list[Span]]:
    """The columns of each gradient that is asked for."""
    asked = ((walk.grad.grad_k, walk.dims), (walk.grad.grad_v, walk.values))
    return [columns for name, columns in asked if name is not None]


def _sums(walk: Walk) -> list[Node]:
    """The gradients of the key tile, by columns, over all queries of the share."""

    def visit(n: Node, *carried: Node) -> Sequence[Node]:
        return _step(walk, frame(walk, n), n, list(carried))

    inits = [tile.full(0.0, walk.keys, span.axis) for columns in _spreads(walk) for span in columns]
    return tile.loop(0, turns(walk), 1, inits, visit, walk.schedule.stages)


def _step(walk: Walk, f: Frame, n: Node, sums: list[Node]) -> list[Node]:
    """The gradients after one more tile of queries, those of the keys without the scale."""
    grad, delta = walk.sources[walk.grad.grad], walk.grad.delta
    a = chunk_grad.arrived(f, grad, None if delta is None else walk.sources[delta])
    if walk.spec.per == "joint":
        scored = visible(walk, f)
        p, ds = chunk_grad.joint(f, a, scored)
    else:
        scored = _part(walk, f, walk.part)
        found = chunk_grad.own_softmax(f, a, lambda part: _part(walk, f, part))
        p, ds = chunk_grad.own(f, a, found, scored, _weight(walk, f, n))
    pairs: list[tuple[Node, Node]] = []
    if walk.grad.grad_k is not None:
        pairs += [(chunk_grad.through(f, scored[0], ds), q) for q in f.queries]
    if walk.grad.grad_v is not None:
        pairs += [(p, g) for g in a.grads]
    precision = walk.schedule.precision
    return [
        tile.dot(tile.cast(x, row.dtype), row, walk.rows, acc, precision)
        for acc, (x, row) in zip(sums, pairs, strict=True)
    ]


def _chunk(walk: Walk) -> Node:
    return most(walk.share.chunk, 0)


def _key(walk: Walk) -> Node:
    """The keys of the tile; the last of a chunk may reach into the next one, and past TK."""
    return add(add(mul(_chunk(walk), walk.spec.chunk), mul(walk.part, walk.schedule.block)), tile.iota(walk.keys))


def own_key(walk: Walk) -> Node:
    """Which keys of the tile are the chunk's, and before TK."""
    end = tile.param("TK")
    if walk.spec.chunk % walk.schedule.block:
        end = least(mul(add(_chunk(walk), 1), walk.spec.chunk), end)
    return tile.apply(Fn.LT, _key(walk), end)


def _part(walk: Walk, f: Frame, part: Node) -> Scored:
    return chunks.part_scores(f, _chunk(walk), part)


def visible(walk: Walk, f: Frame) -> Scored:
    """Scores of the tile under the predicate alone: keys that are not the chunk's are computed and never stored."""
    key, spec = _key(walk), walk.spec
    scores, scale = chunks.logits(f, key)
    if spec.where is None:
        return key, scores, scale
    last = sub(tile.param("TK"), 1)
    mask = emit(spec.where, {**f.env, "j": least(key, last) if spec.captures else key}, f.tensors)
    condition = None
    if spec.chunk % walk.schedule.block == 0:
        each = spec.chunk // walk.schedule.block
        condition = chunks.boundary(f, add(mul(_chunk(walk), each), walk.part))
    return key, chunks.hide(scores, mask, condition), scale


def _weight(walk: Walk, f: Frame, n: Node) -> Node:
    """The weight of each row's choice; 0 for rows that are not there."""
    assert walk.spec.weights is not None, "a softmax per chunk needs weights"
    rows, listed, slot = _rows(walk, n)
    return tile.load(walk.sources[walk.spec.weights], f.batch, rows.token, listed, slot, bounds=dict(rows.bounds))


def _write(walk: Walk, goal: Target, columns: Sequence[Span], sums: Sequence[Node]) -> None:
    """Scale and store: rounded where the share is the chunk's only one, else as a partial sum."""
    scale = walk.spec.scale if goal.out.name == walk.grad.grad_k else 1.0
    spec, share, key = walk.spec, walk.share, _key(walk)
    end = least(mul(add(share.chunk, 1), spec.chunk), tile.param("TK"))
    whole = tile.apply(Fn.LT, share.place, 0)
    bounds: dict[int, tile.Value] = {1: tile.apply(Fn.WHERE, whole, end, 0)}
    parts = -(-spec.chunk // walk.schedule.block)
    kept: dict[int, tile.Value] = {3: tile.apply(Fn.WHERE, whole, 0, parts * walk.schedule.block)}
    local = add(mul(walk.part, walk.schedule.block), tile.iota(walk.keys))
    for span, total in zip(columns, sums, strict=True):
        value = total if scale == 1.0 else mul(total, scale)
        rounded = tile.cast(value, goal.out.dtype)
        tile.store(goal.out, walk.at[0], key, walk.key_head, span.index(), value=rounded, bounds=bounds)
        at = (walk.at[0], walk.key_head, most(share.place, 0), local, span.index())
        tile.store(goal.partial, *at, value=value, bounds=kept)
