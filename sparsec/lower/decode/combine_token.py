"""Merging branches of one token: programs of the same grid as those that read a state for one token."""

from __future__ import annotations

from functools import reduce

from sparsec.lower import combine
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scalars import add, mul
from sparsec.lower.scan.cell import padded
from sparsec.plan.specs import Combine
from sparsec.tile import build as tile
from sparsec.tile.language import Node
from sparsec.tile.schedule import Schedule


def lower(spec: Combine, schedule: Schedule) -> Lowered:
    """One (tile of columns, head, sequence) per grid point."""
    wanted = min(schedule.value_block or spec.value_dim, spec.value_dim)
    with tile.Builder() as builder:
        columns, own = builder.axis("e", padded(wanted) if schedule.split_dims else wanted), combine.tensors(spec)
        tiles = -(-spec.value_dim // columns.size)
        at = (tile.program_id(2), tile.const(0), tile.program_id(1))
        column = add(mul(tile.program_id(0) if tiles > 1 else 0, columns.size), tile.iota(columns))
        bounds: dict[int, tile.Value] = {3: spec.value_dim} if spec.value_dim % columns.size else {}

        def number(name: str, *last: int) -> Node:
            return tile.cast(tile.load(own[name], *at, *last), "float32")

        shares, _ = combine.factors(spec, combine.numbers(spec, number))
        found = [tile.cast(tile.load(own[n], *at, column, bounds=bounds), "float32") for n in spec.branches]
        total = reduce(add, (mul(f, o) if f is not None else o for f, o in zip(shares, found, strict=True)))
        tile.store(own[spec.out], *at, column, value=tile.cast(total, spec.dtype), bounds=bounds)
        params = [(name, "int32") for name in ("B", "TQ", "TK", "q_offset")]
        grid = (tile.const(tiles), tile.const(spec.heads), tile.param("B"))
        return Lowered((Step(builder.program(spec.name, list(own.values()), params, grid), schedule),))
