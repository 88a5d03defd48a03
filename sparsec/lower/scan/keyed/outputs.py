"""Outputs chunk by chunk, and what segments make of a state.

O = X_q M + Σ A_qy (what column y carries)        M <- e^Γ_C M + Σ Yᵀ (what column y carries)
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.scalars import sub
from sparsec.lower.scan.chunk import resets
from sparsec.lower.scan.chunk.operands import operands, product
from sparsec.lower.scan.chunk.parts import Chunk, column_limit, power
from sparsec.lower.scan.chunk.segments import initial_state, needed, store_final
from sparsec.lower.scan.keyed.sides import Keyed
from sparsec.lower.scan.keyed.walk import Walk, walk
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor


def lower(keyed: Keyed, final: str | None) -> Program:
    """One (segment, tile of columns, batch and head) per grid point; ``final`` where there is one segment."""
    own = keyed.own
    with tile.Builder() as builder:
        at = walk(builder, keyed, own.tiles)
        batch, head = at.place.batch, at.place.head
        state, tensors = first_state(at, batch, head)

        def visit(number: Node, state: Node) -> Sequence[Node]:
            chunk, place = Chunk(own, batch, head, number), (tile.iota(at.axes.dims), at.column)
            at.total(chunk)  # read first, needed last
            state = resets.entered(chunk, state, place, at.limits)
            answered = at.answered(chunk, state)
            _store(at, chunk, _outputs(at, chunk, answered, state))
            after = at.after(chunk, answered, state)
            resets.keep_last(chunk, final, after, place, at.limits)
            return [after]

        (state,) = tile.loop(*at.bounds(), 1, [state], visit)
        tensors += resets.tensors(own, own.writes.initial, final)
        if final is not None and own.runs is None:
            tensors.append(store_final(own, final, (batch, head, tile.iota(at.axes.dims), at.column), state, at.limits))
        tensors += [*at.tensors(), _out(keyed), keyed.faded(keyed.query), *(keyed.seen(s) for s in keyed.columns)]
        return own.program(builder, "", tensors, at.place.grid)


def first_state(at: Walk, batch: Node, head: Node) -> tuple[Node, list[Tensor]]:
    """The state before a segment, and the tensors that it comes from."""
    own, row = at.keyed.own, tile.iota(at.axes.dims)
    if own.splits == 1:
        return initial_state(own, batch, head, row, at.column, at.limits)
    state = tile.load(own.starts, batch, head, at.place.segment, row, at.column, bounds=dict(at.limits))
    return state, [own.starts]


def _out(keyed: Keyed) -> Tensor:
    return keyed.own.tensor(keyed.read.out, keyed.read.heads, keyed.own.writes.cols)


def _outputs(at: Walk, chunk: Chunk, answered: Node | None, state: Node) -> Node:
    keyed, a, precision = at.keyed, at.axes, at.keyed.own.schedule.precision
    asked = at.wide(keyed.faded(keyed.query), chunk, a.queries)
    out = product(keyed.operands(asked), operands(state, keyed.own.writes, keyed.splits_asked), a.dims, None, precision)
    for column in keyed.columns:
        seen = at.square(keyed.seen(column), chunk)
        for part in at.written(column, chunk, answered):
            out = tile.dot(seen, part, a.keys, out, precision)
    return out


def _store(at: Walk, chunk: Chunk, out: Node) -> None:
    own, made = at.keyed.own, _out(at.keyed)
    bounds: dict[int, tile.Value] = {1: tile.param(own.writes.length)}
    if limit := column_limit(own.writes.cols, at.reach):
        bounds[3] = limit
    place = (chunk.batch, chunk.token(at.axes.queries), chunk.head, at.column)
    tile.store(made, *place, value=tile.cast(out, made.dtype), bounds=bounds)


def lower_ends(keyed: Keyed, first: bool, last: bool) -> Program:
    """L of every segment, and P beside it; one (segment, tile of columns, batch and head) per grid point.

    What nobody needs is not worked out: P of the first segment unless ``first``, and the last one's unless ``last``.
    """
    own, w = keyed.own, keyed.own.writes
    tiles = own.tiles + (power(w.rows) // own.columns if own.delta else 0)
    with tile.Builder() as builder:
        at = walk(builder, keyed, tiles)
        batch, head, segment, row = at.place.batch, at.place.head, at.place.segment, tile.iota(at.axes.dims)

        def visit(number: Node, state: Node, total: Node) -> Sequence[Node]:
            chunk = Chunk(own, batch, head, number)
            state = resets.entered(chunk, state, (row, at.column), at.limits)
            after = at.after(chunk, at.answered(chunk, state), state)
            return [after, resets.passed(chunk, total, lambda: at.total(chunk)) if own.fading else total]

        inits = [_unit(at), tile.full(0.0, at.axes.dims)]
        state, total = tile.loop(*needed(at.place, first, last), 1, inits, visit)
        limits: dict[int, tile.Value] = {3: at.limits[3]} if 3 in at.limits else {}
        tile.store(own.ends, batch, head, segment, row, at.column, value=state, bounds=limits)
        if own.fading:
            tile.store(own.fades, batch, head, segment, row, value=total)
        tensors = [*at.tensors(), own.ends, *resets.tensors(own, w.initial)] + [own.fades] * own.fading
        return own.program(builder, "ends", tensors, at.place.grid)


def _unit(at: Walk) -> Node:
    """0 in the columns of values, the unit matrix in those after them."""
    own, nothing = at.keyed.own, tile.full(0.0, at.axes.dims, at.axes.columns)
    if not own.delta:
        return nothing
    diagonal = tile.apply(Fn.EQ, sub(at.column, own.tiles * own.columns), tile.iota(at.axes.dims))
    return tile.apply(Fn.WHERE, diagonal, tile.full(1.0, *nothing.axes), nothing)
