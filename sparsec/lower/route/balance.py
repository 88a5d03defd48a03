"""A router's load balance: sums of shares and of choices per stretch of tokens, then the loss."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.route import parts
from sparsec.lower.scalars import add, mul
from sparsec.plan.states.route_specs import Balance
from sparsec.scalar.expr import constant, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.functions import maximum
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule

STRETCHES = "ROUTE_STRETCHES"
"""The launch parameter with the number of stretches."""

LONG = 1024
"""Tokens of a stretch."""


def lower(spec: Balance, schedule: Schedule) -> Lowered:
    """The loss, and what it gives to each share."""
    one = Schedule(warps=1, stages=1, lanes=("n",), split_dims=schedule.split_dims)
    steps = (Step(_sums(spec, schedule), schedule), Step(_loss(spec, one), one))
    stretches = maximum((var(spec.router.length) + (LONG - 1)) // LONG, constant(1))
    return Lowered(steps, (as_scratch(_made(spec)),), ((STRETCHES, stretches),))


def _made(spec: Balance) -> Tensor:
    """Sums of shares, numbers of choices, and, the same for all parts, of tokens."""
    return Tensor(f"{spec.name}_sums", "float32", ("B", STRETCHES, 3, spec.router.parts))


def _sums(spec: Balance, schedule: Schedule) -> Program:
    """One (stretch, 1, batch) per grid point."""
    router = spec.router
    with tile.Builder() as builder:
        start = mul(tile.program_id(0), LONG)
        at = parts.tokens(builder, router, schedule, start, tile.program_id(2))

        def visit(n: Node, *totals: Node) -> Sequence[Node]:
            here = parts.Tokens(router, at.rows, at.parts, at.batch, add(at.token, mul(n, schedule.rows)))
            chosen = tile.apply(Fn.WHERE, here.real, parts.any_of(here.chosen()), 0.0)
            there = tile.apply(Fn.WHERE, here.real, tile.const(1.0), 0.0)
            found = (here.shares(), chosen, there)
            return [add(x, tile.reduce("sum", y, at.rows)) for x, y in zip(totals, found, strict=True)]

        found = tile.loop(0, LONG // schedule.rows, 1, [tile.full(0.0, at.parts)] * 3, visit)
        for which, value in enumerate(found):
            place = (at.batch, tile.program_id(0), which, at.part)
            tile.store(_made(spec), *place, value=value, bounds={3: router.parts})
        tensors = [parts.shares(router), parts.ids(router), _made(spec)]
        grid = (tile.param(STRETCHES), 1, tile.param("B"))
        return parts.program(builder, router, f"{spec.name}_sum", tensors, grid, STRETCHES)


def _loss(spec: Balance, schedule: Schedule) -> Program:
    """A single program."""
    router = spec.router
    with tile.Builder() as builder:
        at = parts.tokens(builder, router, schedule, tile.const(0), tile.const(0))

        def document(batch: Node, *totals: Node) -> Sequence[Node]:
            def visit(stretch: Node, *sums: Node) -> Sequence[Node]:
                place = [(batch, stretch, which, at.part) for which in range(3)]
                read = [tile.load(_made(spec), *p, bounds={3: router.parts}) for p in place]
                return [add(total, x) for total, x in zip(sums, read, strict=True)]

            return tile.loop(0, tile.param(STRETCHES), 1, totals, visit)

        shares, choices, tokens = tile.loop(0, tile.param("B"), 1, [tile.full(0.0, at.parts)] * 3, document)
        all_ = tile.apply(Fn.WHERE, tile.apply(Fn.LT, 0.0, tokens), tokens, 1.0)
        slope = mul(tile.apply(Fn.DIV, tile.apply(Fn.DIV, choices, all_), all_), spec.factor)
        slopes, out = Tensor(spec.slopes, "float32", (router.parts,)), Tensor(spec.loss, "float32", ())
        tile.store(slopes, at.part, value=slope, bounds={0: router.parts})
        tile.store(out, value=tile.reduce("sum", mul(shares, slope), at.parts))
        return parts.program(builder, router, spec.name, [_made(spec), slopes, out], (1,), STRETCHES)


def default(spec: Balance, target: str) -> Schedule:
    """The kernel only moves memory."""
    return Schedule(rows=32, warps=4, stages=1, lanes=("n",), split_dims=target.startswith("triton"))
