"""The gradient of the queries of tiled attention."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.scalars import add, mul
from sparsec.lower.tiled import grad as tiled_grad
from sparsec.lower.tiled import query_walk
from sparsec.lower.tiled.query_walk import Meeting
from sparsec.plan.grad_specs import TiledGradQ
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: TiledGradQ, schedule: Schedule) -> Program:
    """grad_q ``[B,TQ,H,D]``: one (query tile, head, batch) per grid point."""
    forward = spec.forward
    with tile.Builder() as builder:
        at = query_walk.begin(builder, spec, forward.pieces, schedule)
        w = at.w

        def consume(met: Meeting, totals: Sequence[Node]) -> list[Node]:
            assert met.pairs.change is not None
            return tiled_grad.accumulate(met.pairs.change, met.keys, w.keys, totals, schedule.precision)

        totals: list[Node] = [tile.full(0.0, w.rows, d.axis) for d in w.dims]
        for piece in forward.pieces:
            totals = query_walk.walk(at, piece, totals, consume)
        out = Tensor(spec.grad_q, spec.out_dtype, ("B", "TQ", forward.heads, forward.head_dim))
        row = add(at.first, tile.iota(w.rows))
        for span, total in zip(w.dims, totals, strict=True):
            value = tile.cast(mul(total, forward.scale), spec.out_dtype)
            tile.store(out, at.batch, row, at.head, span.index(), value=value, bounds={1: tile.param("TQ")})
        buffers = [*w.tensors.values(), out]
        return builder.program(spec.name, buffers, tiled_grad.params(forward), query_walk.grid(spec, schedule))
