"""Scores of candidate blocks for a tile of tokens: dot products, softmax per head, group reduction, pooling."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import reduce

from sparsec.lower import softmax
from sparsec.lower.pieces import Span, dot_over, row_dots
from sparsec.lower.ranges import outside_interior, tile_ranges, walk
from sparsec.lower.scalars import add, both, emit, most, mul, sub
from sparsec.lower.select import children
from sparsec.lower.select.frame import Frame, sharing
from sparsec.lower.select.unit import inverse_length, unit
from sparsec.plan.specs import Piece, Pool
from sparsec.scalar.expr import Expr, call, var
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node

Scores = Callable[[Node], Node]
"""From the numbers of some summaries, along the key axis, to their scores ``[rows, keys]``."""


def query(f: Frame, head: Node | int) -> list[Node]:
    """The query rows of one head of the group."""
    place = (f.batch, f.row, add(f.head, head))
    return [tile.load(f.tensors[f.spec.q], *place, d.index(), bounds={1: tile.param("TQ")}) for d in f.dims]


def products(f: Frame, queries: Sequence[Node], number: Node, exist: bool = False) -> Node:
    """Raw scores of summaries; those that do not exist have a score of zero, unless all are known to ``exist``."""
    keys = [_key(f, number, d, exist) for d in f.dims]
    found = _dots(f, queries, keys)
    return mul(mul(found, inverse_length(queries, f.dims)), inverse_length(keys, f.dims)) if f.spec.cosine else found


def _dots(f: Frame, queries: Sequence[Node], keys: list[Node]) -> Node:
    if f.rows in keys[0].axes:  # every row has keys of its own
        return row_dots(queries, keys, f.dims)
    if f.tensors[f.spec.keys].dtype == f.spec.dtype:
        return dot_over(f.dims, list(queries), dict(zip(f.dims, keys, strict=True)).__getitem__, f.schedule.precision)
    parts = [dict(zip(f.dims, part, strict=True)) for part in split(keys, f.spec.dtype)]
    found = (dot_over(f.dims, list(queries), part.__getitem__, f.schedule.precision) for part in parts)
    return reduce(add, found)


def _key(f: Frame, number: Node, d: Span, exists: bool) -> Node:
    place = (*([f.batch] if f.spec.batched else []), number, f.key_head, d.index())
    bounds: dict[int, tile.Value] = {} if exists else {int(f.spec.batched): tile.param(f.spec.key_length)}
    return tile.load(f.tensors[f.spec.keys], *place, bounds=bounds, other=0.0 if bounds else None)


def split(totals: list[Node], dtype: str) -> list[list[Node]]:
    """fp32 tiles as tiles of a half-precision dtype that add up to them, the smallest first."""
    parts: list[list[Node]] = []
    for _ in range(3 if dtype == "bfloat16" else 2):
        rounded = [tile.cast(t, dtype) for t in totals]
        totals = [sub(t, tile.cast(r, "float32")) for t, r in zip(totals, rounded, strict=True)]
        parts.insert(0, rounded)
    return parts


def over_heads(f: Frame, body: Callable[[Node, Node], Node], start: Node) -> Node:
    """``x = body(head, x)`` for every head of the group."""
    if f.group is None:
        return body(tile.const(0), start)
    return tile.loop(0, sharing(f.spec), 1, [start], lambda head, x: [body(head, x)], f.schedule.stages)[0]


def summary_scores(f: Frame) -> Scores:
    """How summaries are scored, reduced over the group; what must be known before is computed here."""
    if f.spec.softmax:
        sums = log_sums(f)
        return lambda number: _probabilities(f, sums, number)
    if f.group is None or f.spec.group == "max":
        return lambda number: _scaled(f, _each_head(f, number), f.spec.scale)
    parts = _summed_query(f)
    share = f.spec.scale / (sharing(f.spec) if f.spec.group == "mean" else 1)
    return lambda number: _scaled(f, _by_summed(f, parts, number), share)


def _by_summed(f: Frame, parts: Sequence[Sequence[Node]], number: Node) -> Node:
    """The scores of the sum of the group's queries, which are of length 1 each for cosines."""
    keys = [_key(f, number, d, False) for d in f.dims]
    found = reduce(add, (_dots(f, part, keys) for part in parts))
    return mul(found, inverse_length(keys, f.dims)) if f.spec.cosine else found


def _scaled(f: Frame, scores: Node, scale: float) -> Node:
    return scores if scale == 1.0 else mul(scores, scale)


def _each_head(f: Frame, number: Node) -> Node:
    """The scores of one head, or the maximum over the heads of the group."""
    if f.group is None:
        return products(f, query(f, 0), number)
    lowest = tile.full(-math.inf, f.rows, f.keys)
    return over_heads(f, lambda head, best: most(best, products(f, query(f, head), number)), lowest)


def _summed_query(f: Frame) -> list[list[Node]]:
    """The sum of the group's queries as parts of the storage dtype that add up to fp32, the smallest first.

    Scoring is linear, so one summed query does the work of the group; rounding it would change what is chosen.
    """
    dtype, share = f.spec.dtype, sharing(f.spec)

    def visit(head: Node, *sums: Node) -> Sequence[Node]:
        own = query(f, head)
        wide = unit(own, f.dims) if f.spec.cosine else [tile.cast(q, "float32") for q in own]
        return [add(x, q) for x, q in zip(sums, wide, strict=True)]

    totals = tile.loop(0, share, 1, [tile.full(0.0, f.rows, d.axis) for d in f.dims], visit)
    return [totals] if dtype == "float32" or children.by_row(f) else split(totals, dtype)


def log_sums(f: Frame) -> Node:
    """Base-two log-sum-exp of every head's scores over the visible summaries, ``[rows]`` or ``[rows, group]``."""
    if f.group is None:
        return log_sum(f, tile.const(0))
    lane, start = tile.iota(f.group), tile.full(0.0, f.rows, f.group)
    return over_heads(
        f, lambda head, sums: tile.apply(Fn.WHERE, tile.apply(Fn.EQ, lane, head), log_sum(f, head), sums), start
    )


def log_sum(f: Frame, head: Node) -> Node:
    """Base-two log-sum-exp of one head's scores over the visible summaries, ``[rows]``."""
    queries = query(f, head)
    return log_sum_of(f, lambda number, exist: products(f, queries, number, exist))


def log_sum_of(f: Frame, raw: Callable[[Node, bool], Node]) -> Node:
    """The same of ``raw`` scores, from the numbers of some summaries and whether all are known to exist.

    Under the phases "split" masked and interior tiles have loops of their own.
    """
    spec = f.spec
    piece = Piece(spec.keys, spec.keys, spec.key_length, as_keys(spec.visible))
    ranges = tile_ranges(piece, f.schedule.block, tile.param(spec.key_length), f.env, f.tensors)
    state = [tile.full(softmax.HIDDEN, f.rows), tile.full(0.0, f.rows)]
    if f.schedule.phases == "split":
        for r in ranges:
            state = walk(r, state, lambda masked: lambda at, *s: _summed(f, raw, at, masked, *s), f.schedule.stages)
    else:

        def visit(at: Node, *carried: Node) -> Sequence[Node]:
            condition = outside_interior(ranges, at)
            return _summed(f, raw, at, True if condition is None else condition, *carried)

        state = tile.loop(ranges[0].start, ranges[-1].stop, 1, state, visit, f.schedule.stages)
    top, total = state
    return add(top, tile.apply(Fn.LOG2, total))


def _summed(
    f: Frame, raw: Callable[[Node, bool], Node], at: Node, masked: Node | bool, top: Node, total: Node
) -> list[Node]:
    """The maximum and the sum after one more tile, masked always, never or under a scalar condition."""
    scale, number = f.spec.scale * softmax.LOG2E, add(mul(at, f.schedule.block), tile.iota(f.keys))
    scores = raw(number, masked is False)
    if isinstance(masked, Node):
        scores = tile.mask_if(masked, shown(f, number), scores, softmax.HIDDEN)
    elif masked:
        scores = tile.apply(Fn.WHERE, shown(f, number), scores, softmax.HIDDEN)
    high = most(top, mul(tile.reduce("max", scores, f.keys), scale))
    power = tile.apply(Fn.EXP2, sub(mul(scores, scale), high))
    total = mul(total, tile.apply(Fn.EXP2, sub(top, high)))
    return [high, add(total, tile.reduce("sum", power, f.keys))]


def shown(f: Frame, number: Node) -> Node:
    """Which summaries exist and are visible."""
    exists = tile.apply(Fn.LT, number, tile.param(f.spec.key_length))
    return exists if f.spec.visible is None else both(emit(f.spec.visible, {**f.env, "c": number}), exists)


def _probabilities(f: Frame, sums: Node, number: Node) -> Node:
    """Probabilities summed or averaged over the group; the mask is applied once, after the heads are added."""
    scale = f.spec.scale * softmax.LOG2E

    def of_head(head: Node, total: Node) -> Node:
        own = sums
        if f.group is not None:
            own = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, tile.iota(f.group), head), sums, 0.0)
            own = tile.reduce("sum", own, f.group)
        power = tile.apply(Fn.EXP2, sub(mul(products(f, query(f, head), number), scale), own))
        return most(total, power) if f.spec.group == "max" else add(total, power)

    total = over_heads(f, of_head, tile.full(0.0, f.rows, f.keys))
    total = tile.apply(Fn.WHERE, shown(f, number), total, 0.0)
    return mul(total, 1.0 / sharing(f.spec)) if f.spec.group == "mean" else total


def offsets(pool: Pool) -> tuple[int, Counter[int]]:
    """Block c collects the summaries ``step * c + offset``: the step, and how often each offset counts."""
    if pool.kind in ("max", "sum", "mean"):
        return pool.stride_blocks, Counter(range(-pool.padding, pool.kernel - pool.padding))
    ratio, overlap = pool.block // pool.stride, pool.size // pool.stride
    sign = -1 if pool.kind == "paper_literal" else 1
    return ratio, Counter(sign * m - n for m in range(ratio) for n in range(overlap))


def block_scores(f: Frame, scores: Scores, block: Node) -> Node:
    """Scores of blocks, pooled from those of their summaries; summaries that do not exist contribute nothing."""
    pool = f.spec.pool
    if pool is None:
        return scores(block)
    step, counts = offsets(pool)
    if len(counts) > UNROLLED and set(counts.values()) == {1}:
        first, start = min(counts), [_nothing(f, pool), tile.full(0, f.rows, f.keys, dtype="int32")]

        def visit(n: Node, *state: Node) -> Sequence[Node]:
            return _pooled(f, pool, scores, add(mul(block, step), add(n, first)), 1, state)

        total, present = tile.loop(0, len(counts), 1, start, visit, f.schedule.stages)
    else:
        state: Sequence[Node] = ()
        for offset, count in sorted(counts.items()):
            state = _pooled(f, pool, scores, add(mul(block, step), offset), count, state, may_precede=offset < 0)
        total, present = state
    return tile.apply(Fn.DIV, total, tile.cast(most(present, 1), "float32")) if pool.kind == "mean" else total


UNROLLED = 16
"""Summaries of a block that a program names one by one; more of them are walked."""


def _nothing(f: Frame, pool: Pool) -> Node:
    """What a block of no summaries scores."""
    return tile.full(-math.inf if pool.kind == "max" else 0.0, f.rows, f.keys)


def _pooled(
    f: Frame, pool: Pool, scores: Scores, number: Node, count: int, state: Sequence[Node], may_precede: bool = True
) -> list[Node]:
    """The pool after one more summary of every block, and how many there were; the first where there is no state."""
    exists = tile.apply(Fn.LT, number, tile.param(f.spec.key_length))
    exists = both(exists, tile.apply(Fn.LE, 0, number)) if may_precede else exists
    if f.spec.visible is not None and not f.spec.softmax:
        exists = both(exists, emit(f.spec.visible, {**f.env, "c": number}))
    nothing, merge = (-math.inf, Fn.MAXIMUM) if pool.kind == "max" else (0.0, Fn.ADD)
    found = tile.apply(Fn.WHERE, exists, scores(most(number, 0) if may_precede else number), nothing)
    found = mul(found, float(count)) if merge is Fn.ADD and count > 1 else found
    one = tile.apply(Fn.WHERE, exists, 1, 0)
    return [tile.apply(merge, state[0], found), add(state[1], one)] if state else [found, one]


def as_keys(predicate: Expr | None) -> Expr | None:
    """A predicate over candidates c as one over keys j, for the analysis of bounds."""
    if predicate is None or (predicate.head == "var" and predicate.value != "c"):
        return predicate
    if predicate.head == "var":
        return var("j")
    if not isinstance(predicate.head, Fn):
        return predicate
    return call(predicate.head, *(a for a in map(as_keys, predicate.args) if a is not None))
