"""Log-sum-exps of rows, a tile of tokens at a time."""

from __future__ import annotations

from sparsec.lower.pointwise.choice import over
from sparsec.lower.pointwise.frame import layout, params
from sparsec.lower.scalars import add, mul, sub
from sparsec.plan.maps.map_specs import MapSource
from sparsec.plan.maps.row_specs import RowLse
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: RowLse, schedule: Schedule) -> Program:
    """x ``[B,N,heads,dim]`` -> ``[B,N,heads]``."""
    shape = spec.shape
    with tile.Builder() as builder:
        tiles = layout(builder, shape, schedule)
        at, out = tiles.at(mul(tile.program_id(0), schedule.rows)), Tensor(spec.out, "float32", shape[:3])
        x = at.read(MapSource(spec.x, spec.dtype, shape))
        top = over("max", x, at.columns)
        total = over("sum", [tile.apply(Fn.EXP, sub(p, top)) for p in x], at.columns)
        value = add(top, tile.apply(Fn.LOG, total))
        tile.store(out, *at.place, value=value, bounds={1: tile.param(spec.length)})
        tensors = [Tensor(spec.x, spec.dtype, shape), out]
        return builder.program(spec.name, tensors, params([shape]), tiles.grid(schedule.rows))
