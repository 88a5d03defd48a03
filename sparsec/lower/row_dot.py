"""delta, the share of the softmax's normalisation in every gradient, row by row; and the gradient of sink logits."""

from __future__ import annotations

from sparsec.lower import sink_sum
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.pieces import row_dots, spans
from sparsec.lower.scalars import add, ceil_div, mul, sub
from sparsec.lower.softmax import LOG2E, NOTHING
from sparsec.plan.grad_specs import RowDot
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: RowDot, schedule: Schedule) -> Lowered:
    """delta ``[B,TQ,H]``; with sinks also their sums per tile of rows, and a program that adds those up."""
    steps = [Step(_rows(spec, schedule), schedule, flat=True)]
    if spec.sink_grad is None:
        return Lowered(tuple(steps))
    last = sink_sum.program(spec.name, spec.sink_grad, spec.heads, schedule.rows)
    steps.append(Step(last, schedule, flat=True))
    return Lowered(tuple(steps), (sink_sum.scratch(spec.name, spec.heads, schedule.rows),))


def _rows(spec: RowDot, schedule: Schedule) -> Program:
    """One (tile of rows, head, batch) per grid point."""
    with tile.Builder() as builder:
        rows = builder.axis("m", schedule.rows)
        tensors = _tensors(spec)
        length = tile.param("TQ")
        number, head, batch = (tile.program_id(d) for d in range(3))
        place = (batch, add(mul(number, schedule.rows), tile.iota(rows)), head)

        def read(name: str, *rest: Node) -> Node:
            return tile.cast(tile.load(tensors[name], *place, *rest, bounds={1: length}), "float32")

        columns = spans(builder, "e", spec.value_dim, schedule)
        outs = (read(spec.out, e.index()) for e in columns)
        grads = (read(spec.grad, e.index()) for e in columns)
        delta = row_dots(outs, grads, columns)
        if spec.lse_grad is not None:
            delta = sub(delta, read(spec.lse_grad))
        tile.store(tensors[spec.delta], *place, value=delta, bounds={1: length})
        if spec.sink_grad is not None:
            assert spec.sink is not None and spec.lse is not None, "the gradient of sinks needs sinks and lse"
            share = mul(_weight(tile.load(tensors[spec.sink], head), read(spec.lse)), delta)
            found = sink_sum.shares(spec.name, spec.heads)
            tile.store(found, head, batch, number, value=tile.reduce("sum", share, rows))
        grid = (ceil_div(length, schedule.rows), tile.const(spec.heads), tile.param("B"))
        return builder.program(spec.name, list(tensors.values()), sink_sum.PARAMS, grid)


def _tensors(spec: RowDot) -> dict[str, Tensor]:
    """Buffers in launch order."""
    lead: tuple[str | int, ...] = ("B", "TQ", spec.heads)
    found = {
        spec.out: Tensor(spec.out, spec.out_dtype, (*lead, spec.value_dim)),
        spec.grad: Tensor(spec.grad, spec.grad_dtype, (*lead, spec.value_dim)),
    }
    if spec.lse_grad is not None:
        found[spec.lse_grad] = Tensor(spec.lse_grad, "float32", lead)
    if spec.sink_grad is not None:
        assert spec.sink is not None and spec.lse is not None
        found[spec.sink] = Tensor(spec.sink, "float32", (spec.heads,))
        found[spec.lse] = Tensor(spec.lse, "float32", lead)
        shares = sink_sum.shares(spec.name, spec.heads)
        found[shares.name] = shares
    found[spec.delta] = Tensor(spec.delta, "float32", lead)
    return found


def _weight(sink: Node, lse: Node) -> Node:
    """The sink's share of a row, 0 where there is neither sink nor key."""
    empty = tile.apply(Fn.LE, lse, NOTHING)
    exponent = sub(mul(sink, LOG2E), mul(tile.apply(Fn.WHERE, empty, 0.0, lse), LOG2E))
    return tile.apply(Fn.WHERE, empty, 0.0, tile.apply(Fn.EXP2, exponent))


def default(spec: RowDot, target: str) -> Schedule:
    """A few rows per program: the kernel only moves memory."""
    triton = target.startswith("triton")
    return Schedule(rows=32 if triton else 16, warps=4, stages=2, lanes=("e", "p", "m"), split_dims=triton)


def space(spec: RowDot, target: str) -> dict[str, tuple[object, ...]]:
    """Rows per program, and warps."""
    rows = (16, 32, 64)
    return {"rows": rows, "warps": (2, 4, 8)} if target.startswith("triton") else {"rows": rows}
