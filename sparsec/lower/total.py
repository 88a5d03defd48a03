"""The sum of tensors of one shape, in fp32 and rounded once."""

from __future__ import annotations

from functools import reduce

from sparsec.lower.pieces import spans
from sparsec.lower.scalars import add, ceil_div, mul
from sparsec.plan.grad_specs import Total
from sparsec.tile import build as tile
from sparsec.tile.language import Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: Total, schedule: Schedule) -> Program:
    """One (tile of rows, head, batch) per grid point."""
    with tile.Builder() as builder:
        rows = builder.axis("m", schedule.rows)
        lead: tuple[str | int, ...] = ("B", spec.length) if spec.batched else (spec.length,)
        shape = (*lead, spec.heads, spec.dim)
        dtypes = dict(zip(spec.terms, spec.term_dtypes, strict=True))
        terms = {name: Tensor(name, dtype, shape) for name, dtype in dtypes.items()}
        out, length = Tensor(spec.out, spec.out_dtype, shape), tile.param(spec.length)
        row = add(mul(tile.program_id(0), schedule.rows), tile.iota(rows))
        place = (tile.program_id(2), row, tile.program_id(1)) if spec.batched else (row, tile.program_id(1))
        bounds: dict[int, tile.Value] = {int(spec.batched): length}
        for span in spans(builder, "d", spec.dim, schedule):
            read = [tile.load(terms[name], *place, span.index(), bounds=bounds) for name in spec.terms]
            total = reduce(add, [tile.cast(x, "float32") for x in read])
            tile.store(out, *place, span.index(), value=tile.cast(total, spec.out_dtype), bounds=bounds)
        params = [(name, "int32") for name in dict.fromkeys(["B", "TQ", "TK", "q_offset", spec.length])]
        grid = (ceil_div(length, schedule.rows), tile.const(spec.heads), tile.param("B") if spec.batched else 1)
        return builder.program(spec.name, [*terms.values(), out], params, grid)


def default(spec: Total, target: str) -> Schedule:
    """A few rows per program: the kernel only moves memory."""
    triton = target.startswith("triton")
    return Schedule(rows=32 if triton else 16, warps=4, stages=2, lanes=("d",), split_dims=triton)


def space(spec: Total, target: str) -> dict[str, tuple[object, ...]]:
    """Rows per program, and warps."""
    rows = (8, 16, 32, 64)
    return {"rows": rows, "warps": (2, 4, 8)} if target.startswith("triton") else {"rows": rows}
