"""Sums of gradients of first states: of several banks that begin at them, and of batch entries that share them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from sparsec.lower.scalars import add, mul
from sparsec.lower.scan.cell import padded
from sparsec.plan.states.scan_specs import StatesSum
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: StatesSum, schedule: Schedule) -> Program:
    """Terms ``[B,P,heads,D,DV]`` -> out ``[P,heads,D,DV]`` or ``[B,P,heads,D,DV]``, fp32.

    One (tile of columns, head and part, batch entry if they stay apart) per grid point.
    """
    with tile.Builder() as builder:
        rows = builder.axis("d", padded(spec.rows) if schedule.split_dims else spec.rows)
        wanted = min(schedule.value_block or spec.cols, spec.cols)
        cols = builder.axis("e", padded(wanted) if schedule.split_dims else wanted)
        shape = ("B", spec.parts, spec.heads, spec.rows, spec.cols)
        terms = [Tensor(x, "float32", shape) for x in spec.x]
        out = Tensor(spec.out, "float32", shape if spec.batched else shape[1:])
        part = tile.apply(Fn.TRUNCDIV, tile.program_id(1), spec.heads)
        head = tile.apply(Fn.TRUNCMOD, tile.program_id(1), spec.heads)
        column = add(mul(tile.program_id(0), cols.size), tile.iota(cols))
        place = (part, head, tile.iota(rows), column)
        limits: dict[int, tile.Value] = {2: spec.rows, 3: spec.cols}
        within = {dim + 1: limit for dim, limit in limits.items()}

        def visit(batch: Node, total: Node) -> Sequence[Node]:
            return [reduce(add, (tile.load(x, batch, *place, bounds=within) for x in terms), total)]

        nothing = tile.full(0.0, rows, cols)
        if spec.batched:
            batch = tile.program_id(2)
            tile.store(out, batch, *place, value=visit(batch, nothing)[0], bounds=within)
        else:
            (total,) = tile.loop(0, tile.param("B"), 1, [nothing], visit)
            tile.store(out, *place, value=total, bounds=limits)
        entries = tile.param("B") if spec.batched else tile.const(1)
        grid = (tile.const(-(-spec.cols // cols.size)), tile.const(spec.heads * spec.parts), entries)
        names = [(n, "int32") for n in ("B", "TQ", "TK", "q_offset")]
        return builder.program(spec.name, [*terms, out], names, grid)


def default(spec: StatesSum, target: str) -> Schedule:
    """A narrow tile of columns: the kernel only moves memory."""
    return Schedule(value_block=32, warps=4, stages=1, lanes=("e", "d"), split_dims=target.startswith("triton"))
