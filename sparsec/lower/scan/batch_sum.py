"""The gradient of first states that all batch entries share: the sum of theirs."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.scalars import add, mul
from sparsec.lower.scan.cell import padded
from sparsec.plan.scan_specs import StatesSum
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: StatesSum, schedule: Schedule) -> Program:
    """x ``[B,P,heads,D,DV]`` -> out ``[P,heads,D,DV]``, fp32; one (tile of columns, head, part) per grid point."""
    with tile.Builder() as builder:
        rows = builder.axis("d", padded(spec.rows) if schedule.split_dims else spec.rows)
        wanted = min(schedule.value_block or spec.cols, spec.cols)
        cols = builder.axis("e", padded(wanted) if schedule.split_dims else wanted)
        shape = ("B", spec.parts, spec.heads, spec.rows, spec.cols)
        x, out = Tensor(spec.x, "float32", shape), Tensor(spec.out, "float32", shape[1:])
        part, head, row = tile.program_id(2), tile.program_id(1), tile.iota(rows)
        column = add(mul(tile.program_id(0), cols.size), tile.iota(cols))
        limits: dict[int, tile.Value] = {2: spec.rows, 3: spec.cols}

        def visit(batch: Node, total: Node) -> Sequence[Node]:
            bounds = {dim + 1: limit for dim, limit in limits.items()}
            return [add(total, tile.load(x, batch, part, head, row, column, bounds=bounds))]

        (total,) = tile.loop(0, tile.param("B"), 1, [tile.full(0.0, rows, cols)], visit)
        tile.store(out, part, head, row, column, value=total, bounds=limits)
        grid = (tile.const(-(-spec.cols // cols.size)), tile.const(spec.heads), tile.const(spec.parts))
        return builder.program(spec.name, [x, out], [(n, "int32") for n in ("B", "TQ", "TK", "q_offset")], grid)


def default(spec: StatesSum, target: str) -> Schedule:
    """A narrow tile of columns: the kernel only moves memory."""
    return Schedule(value_block=32, warps=4, stages=1, lanes=("e", "d"), split_dims=target.startswith("triton"))
