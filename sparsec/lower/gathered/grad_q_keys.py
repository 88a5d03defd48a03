"""Gradients of the queries of gathered attention, key-outer: what every chunk adds to the queries that chose it.

A chunk's keys stay in registers while the queries that chose it pass by, so that no key is read twice; sums are atomic
additions in fp32, in no fixed order. Scores are ``[queries, keys]`` as in the forward, unlike in ``gathered_grad_kv``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce

from sparsec.lower import row_dot
from sparsec.lower.gathered import chunk_grad, chunks, grad_walk
from sparsec.lower.gathered import grad_kv as gathered_grad_kv
from sparsec.lower.gathered.grad_walk import Walk
from sparsec.lower.inverse import shares
from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.inverse.turned import turned
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.pieces import spans
from sparsec.lower.scalars import add, ceil_div, mul
from sparsec.plan.grad_specs import GatheredGradKV, GatheredGradQ, RowDot
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule, ScheduleError

ROWS = 64
"""Rows of a program that clears or rounds the sums."""


def lower(spec: GatheredGradQ, schedule: Schedule) -> Lowered:
    """Turn the lists around, clear the sums, add to them chunk by chunk, round them once."""
    share = chunks.sharing(spec.forward)
    if spec.forward.per != "joint" or spec.grad_q is None:
        raise ScheduleError("key_outer has gradients of queries alone, under one softmax; use tile_union")
    if schedule.rows < share:
        raise ScheduleError(f"{schedule.rows} rows do not hold the {share} heads that share a list of chunks")
    pulled = _from_keys(spec)
    total, wide = sums(spec), replace(schedule, rows=ROWS, warps=4, stages=1, registers=0, descriptors=False)
    index = turned(grad_walk.forward(pulled), schedule, wide, schedule.rows // share, schedule.splits)
    ends = [Step(_each_row(spec, wide, name, make), wide) for name, make in (("clear", _clear), ("round", _round))]
    dots = row_dot.lower(_row_dot(spec), replace(wide, rows=32)).steps if spec.dots else ()
    steps = (*index.steps, *dots, ends[0], Step(_main(pulled, schedule, total), schedule), ends[1])
    return Lowered(steps, (*index.scratch, as_scratch(total)), index.params, index.limits)


def sums(spec: GatheredGradQ) -> Tensor:
    """The sums ``[B, TQ, H, D]`` in fp32."""
    return Tensor(f"{spec.name}_sums", "float32", ("B", "TQ", spec.forward.heads, spec.forward.head_dim))


def _row_dot(spec: GatheredGradQ) -> RowDot:
    """The rowdots that the other loop orders find in passing."""
    f, delta = spec.forward, str(spec.delta)
    dtypes = (f.out_dtype or f.dtype, spec.grad_dtype)
    return RowDot(f"{spec.name}_dots", f.out, spec.grad, delta, f.heads, f.value_dim, *dtypes)


def _from_keys(spec: GatheredGradQ) -> GatheredGradKV:
    """The same pass as one for gradients of keys, none of which is asked for."""
    return GatheredGradKV(
        spec.name, spec.forward, spec.grad, spec.delta, None, None, spec.grad_dtype, spec.out_dtype
    )  # fmt: skip


def _main(spec: GatheredGradKV, schedule: Schedule, total: Tensor) -> Program:
    """The kernel of one (share and part of a chunk, key/value head, batch) per grid point."""
    with tile.Builder() as builder:
        rows = builder.axis("m", schedule.rows)  # before the keys: scores are [queries, keys]
        walk = grad_walk.begin(builder, spec, schedule, rows)

        def visit(n: Node) -> Sequence[Node]:
            _add(walk, grad_walk.frame(walk, n), total)
            return []

        tile.loop(0, grad_walk.turns(walk), 1, [], visit, schedule.stages)
        tensors = [*walk.sources.values(), walk.found.entries, shares.buffer(walk.spec, walk.found), total]
        params = [(name, "int32") for name in shares.PARAMS]
        return builder.program(spec.name, tensors, params, grad_walk.grid(walk.spec, schedule))


def _add(walk: Walk, f: chunks.Frame, total: Tensor) -> None:
    """What the keys add to a tile of queries, without the scale."""
    assert walk.grad.delta is not None, "a common softmax has a delta"
    a = chunk_grad.arrived(f, walk.sources[walk.grad.grad], walk.sources[walk.grad.delta])
    scored = gathered_grad_kv.visible(walk, f)
    slope = chunk_grad.through(f, scored[0], chunk_grad.joint(f, a, scored)[1])
    slope = tile.apply(Fn.WHERE, gathered_grad_kv.own_key(walk), slope, 0.0)  # others' may be infinite
    for span in walk.dims:
        k = chunks.read(f, f.spec.k, scored[0], span.index())
        value = tile.dot(tile.cast(slope, k.dtype), k, f.keys, None, walk.schedule.precision)
        tile.store(total, *f.rows.place(f.batch), span.index(), value=value, bounds=dict(f.rows.bounds), atomic=True)


Make = Callable[[GatheredGradQ, tuple[Node, ...], dict[int, tile.Value], Node], None]


def _each_row(spec: GatheredGradQ, schedule: Schedule, name: str, make: Make) -> Program:
    """One (tile of tokens, head, batch) per grid point."""
    with tile.Builder() as builder:
        forward, rows = spec.forward, builder.axis("m", schedule.rows)
        token = add(mul(tile.program_id(0), schedule.rows), tile.iota(rows))
        bounds: dict[int, tile.Value] = {1: tile.param("TQ")}
        for span in spans(builder, "d", forward.head_dim, schedule):
            make(spec, (tile.program_id(2), token, tile.program_id(1)), bounds, span.index())
        grid = (ceil_div(tile.param("TQ"), schedule.rows), tile.const(forward.heads), tile.param("B"))
        tensors = [sums(spec)] if make is _clear else [sums(spec), *_terms(spec), _out(spec)]
        return builder.program(f"{spec.name}_{name}", tensors, [(n, "int32") for n in chunks.PARAMS], grid)


def _out(spec: GatheredGradQ) -> Tensor:
    assert spec.grad_q is not None
    return Tensor(spec.grad_q, spec.out_dtype, sums(spec).shape)


def _terms(spec: GatheredGradQ) -> list[Tensor]:
    """What is added at the end."""
    return [Tensor(name, "float32", sums(spec).shape) for name in spec.terms]


def _clear(spec: GatheredGradQ, at: tuple[Node, ...], bounds: dict[int, tile.Value], column: Node) -> None:
    zeros = tile.full(0.0, *at[1].axes, *column.axes)
    tile.store(sums(spec), *at, column, value=zeros, bounds=bounds)


def _round(spec: GatheredGradQ, at: tuple[Node, ...], bounds: dict[int, tile.Value], column: Node) -> None:
    own = mul(tile.load(sums(spec), *at, column, bounds=bounds), spec.forward.scale)
    total = reduce(add, [tile.load(term, *at, column, bounds=dict(bounds)) for term in _terms(spec)], own)
    tile.store(_out(spec), *at, column, value=tile.cast(total, spec.out_dtype), bounds=bounds)
