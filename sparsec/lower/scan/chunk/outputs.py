"""Outputs chunk by chunk, the state carried from one chunk to the next in registers; segments side by side.

    O = scale (e^Γ Q M + tril(Q Kᵀ e^{Γ_i − Γ_j}) W)        M <- e^Γ_C M + (K e^{Γ_C − Γ})ᵀ W

with the written values W: beta V, or of a delta rule beta (I + A)⁻¹ (V − e^Γ K M).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparsec.lower.scalars import mul, sub
from sparsec.lower.scan.chunk import resets, units
from sparsec.lower.scan.chunk.operands import operands, product, times
from sparsec.lower.scan.chunk.parts import Chunk, Chunked, column_limit, power_of_two
from sparsec.lower.scan.chunk.place import Place
from sparsec.lower.scan.chunk.segments import initial_state, store_final
from sparsec.lower.scan.chunk.state import Axes, Walk, walk
from sparsec.plan.states.scan_specs import Operand, Read
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor


def lower(own: Chunked, read: Read, name: str, final: str | None, surprise: Operand | None = None) -> Program:
    """One (segment, tile of columns, batch and query head) per grid point; ``final`` where there is one segment.

    With ``surprise`` what a delta rule writes is stored too.
    """
    w = own.writes
    with tile.Builder() as builder:
        place = Place(own, own.tiles, read.heads)
        segment, batch, query = place.segment, place.batch, place.head
        head = tile.apply(Fn.TRUNCDIV, query, read.heads // w.heads)
        at = walk(builder, own, place.number, own.tiles)
        row = tile.iota(at.axes.dims)
        limits = at.limits
        if own.splits == 1:
            state, tensors = initial_state(own, batch, head, row, at.column, limits)
        else:
            state = tile.load(own.starts, batch, head, segment, row, at.column, bounds=dict(limits))
            tensors = [own.starts]
        first, last = place.bounds

        def visit(number: Node, state: Node) -> Sequence[Node]:
            chunk = Chunk(own, batch, head, number)
            state = resets.entered(chunk, state, (row, at.column), limits)
            after = _visit(at, chunk, read, query, state, surprise)
            resets.keep_last(chunk, final, after, (row, at.column), limits)
            return [after]

        (state,) = tile.loop(first, last, 1, [state], visit)
        tensors += resets.tensors(own, w.initial, final)
        if final is not None and own.runs is None:
            tensors.append(store_final(own, final, (batch, head, row, at.column), state, limits))
        tensors += [*at.tensors(), _out(own, read), _queries(own, read), *units.tensors(own, read.q, read.heads)]
        tensors += [own.tensor(surprise, w.heads, w.cols)] if surprise is not None else []
        return own.program(builder, name, tensors, place.grid)


def _queries(own: Chunked, read: Read) -> Tensor:
    return own.tensor(read.q, read.heads, own.writes.rows)


def _out(own: Chunked, read: Read) -> Tensor:
    return own.tensor(read.out, read.heads, own.writes.cols)


def _visit(at: Walk, chunk: Chunk, read: Read, query: Node, state: Node, surprise: Operand | None) -> Node:
    """The outputs of a chunk; the state after it."""
    own, a, precision = at.own, at.axes, at.own.schedule.precision
    inside = own.decays and read.scale > 0  # then the scale costs nothing
    keys = at.keys(chunk)
    q = chunk.rows(_queries(own, read), query, a.queries, tile.iota(a.dims), at.row_limit)
    scores = tile.dot(q, keys, a.dims, precision=precision)
    unit = units.factor(chunk, read.q, read.heads, query, chunk.token(a.queries))
    scale, factors = (read.scale, (unit, None)) if inside else (1.0, (None, None))
    scores = visible(own, chunk, a, scores, read.when, scale, factors)
    beta = None if own.folds else chunk.beta(a.keys)
    scores = scores if beta is None else mul(scores, beta)
    out = product([q], operands(state, own.writes, own.splits_states), a.dims, None, precision)
    if own.decays:
        since = power_of_two(chunk.sums(a.queries))
        out = mul(out, mul(units.scaled(since, unit), read.scale) if inside else since)
    written = at.written(chunk, keys, state)
    if surprise is not None:
        _keep(at, chunk, surprise, written)
    written = at.strong(chunk, written)
    out = product(operands(scores, own.writes, own.splits_scores), at.parts(written), a.keys, out, precision)
    bounds: dict[int, tile.Value] = {1: tile.param(own.writes.length)}
    if limit := column_limit(own.writes.cols, at.reach):
        bounds[3] = limit
    place = (chunk.batch, chunk.token(a.queries), query, at.column)
    out = out if inside else mul(out, read.scale if unit is None else mul(unit, read.scale))
    out = tile.cast(out, read.out.dtype)
    tile.store(_out(own, read), *place, value=out, bounds=bounds)
    return at.after(chunk, keys, written, state)


def _keep(at: Walk, chunk: Chunk, surprise: Operand, written: Node) -> None:
    """Stores what is written; programs of query heads that share a state store the same."""
    w = at.own.writes
    bounds: dict[int, tile.Value] = {1: tile.param(w.length)}
    if limit := column_limit(w.cols, at.reach):
        bounds[3] = limit
    place = (chunk.batch, chunk.token(at.axes.keys), chunk.head, at.column)
    tensor = at.own.tensor(surprise, w.heads, w.cols)
    tile.store(tensor, *place, value=tile.cast(written, surprise.dtype), bounds=bounds)


def visible(
    own: Chunked,
    chunk: Chunk,
    a: Axes,
    scores: Node,
    when: str,
    scale: float = 1.0,
    factors: tuple[Node | None, Node | None] = (None, None),
) -> Node:
    """Scores of the tokens that a query sees, faded since they were written; 0 for the others.

    A ``scale`` above 0 is a summand of the decays; so are ``factors``, of queries and of keys.
    """
    c, n = tile.iota(a.queries), tile.iota(a.keys)
    seen = tile.apply(Fn.LE, n, c) if when == "after" else tile.apply(Fn.LT, n, c)
    if own.decays:
        sums = chunk.sums(a.queries)
        sums = sums if scale == 1.0 else tile.apply(Fn.ADD, sums, math.log2(scale))
        gained, lost = (None if f is None else tile.apply(Fn.LOG2, f) for f in factors)
        sums = sums if gained is None else tile.apply(Fn.ADD, sums, gained)
        before = chunk.sums(a.keys) if lost is None else sub(chunk.sums(a.keys), lost)
        scores = mul(scores, tile.apply(Fn.EXP2, sub(sums, before)))
    else:
        scores = times(scores, *factors) or scores
    return tile.apply(Fn.WHERE, seen, scores, 0.0)
