"""A map: every source through its row function, the traced function of all, one store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparsec.lower.pointwise.frame import Frame, layout, params
from sparsec.lower.pointwise.rows import through
from sparsec.lower.scalars import emit_scores, mul
from sparsec.plan.maps.map_specs import Map, MapSource
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: Map, schedule: Schedule) -> Program:
    """One tile of rows per grid point."""
    with tile.Builder() as builder:
        tiles = layout(builder, spec.shape, schedule)
        at = tiles.at(mul(tile.program_id(0), schedule.rows))
        values, out = applied(spec, at, spec.sources), Tensor(spec.out, spec.dtype, spec.shape)
        for number, column in enumerate(at.columns):
            value = emit_scores(spec.fn, columns_of(values, number), None, at.zeros(column))
            at.write(out, column, value)
        tensors = {s.name: Tensor(s.name, s.dtype, s.stored) for s in spec.sources}
        shapes = [spec.shape, *(s.shape for s in spec.sources)]
        return builder.program(spec.name, [*tensors.values(), out], params(shapes), tiles.grid(schedule.rows))


def applied(spec: Map, at: Frame, sources: Sequence[MapSource]) -> dict[str, list[Node]]:
    """x0, x1, … of some sources, column by column."""
    found = {}
    for number, source in enumerate(spec.sources):
        if source in sources:
            found[f"x{number}"] = through(source, at.read(source), at.own(source.shape))
    return found


def columns_of(values: Mapping[str, list[Node]], number: int) -> dict[str, Node]:
    """One column of every source."""
    return {name: x[number] if len(x) > 1 else x[0] for name, x in values.items()}
