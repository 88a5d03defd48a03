"""The adjoint of a router: gradients of its scores, and from them those of what it scored and of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Scratch, Step
from sparsec.lower.route import parts
from sparsec.lower.route.balance import LONG, STRETCHES
from sparsec.lower.route.parts import BLOCK, Tokens
from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk.operands import halves
from sparsec.plan.states.route_specs import RouterGrad
from sparsec.scalar.expr import constant, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.functions import maximum
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule

AHEAD = 5
"""Stages of a program that only adds up small tiles of x, and waits for them."""


def lower(spec: RouterGrad, schedule: Schedule) -> Lowered:
    """Scores' gradients and those of x; those of rows, per stretch of tokens; their sum."""
    steps, scratch = [Step(_tokens(spec, schedule), schedule)], list[Scratch]()
    stretches = maximum((var(spec.router.length) + (LONG - 1)) // LONG, constant(1))
    if spec.grad_rows is not None:
        ahead = replace(schedule, stages=max(schedule.stages, AHEAD))
        steps += [Step(_rows(spec, schedule), ahead), Step(_sum(spec, schedule), schedule)]
        scratch = [as_scratch(_scores(spec)), as_scratch(_made(spec))]
    return Lowered(tuple(steps), tuple(scratch), ((STRETCHES, stretches),))


def _scores(spec: RouterGrad) -> Tensor:
    r = spec.router
    return Tensor(f"{spec.name}_scores", "float32", ("B", r.length, r.parts))


def _made(spec: RouterGrad) -> Tensor:
    r = spec.router
    return Tensor(f"{spec.name}_shares", "float32", ("B", STRETCHES, r.parts, r.dim))


def _tokens(spec: RouterGrad, schedule: Schedule) -> Program:
    """One (tile of tokens, 1, batch) per grid point."""
    r = spec.router
    with tile.Builder() as builder:
        at = parts.tokens(builder, r, schedule, mul(tile.program_id(0), schedule.rows), tile.program_id(2))
        slope, tensors = _slope(spec, at)
        tensors = [parts.shares(r), parts.ids(r), *tensors]
        if spec.grad_rows is not None:
            limits: dict[int, tile.Value] = {1: tile.param(r.length), 2: r.parts}
            tile.store(_scores(spec), at.batch, at.token, at.part, value=slope, bounds=limits)
            tensors.append(_scores(spec))
        if spec.grad_x is not None:
            out = Tensor(spec.grad_x, spec.x_dtype, ("B", r.length, 1, r.dim))
            _spread(builder, spec, at, slope, out, schedule)
            tensors += [parts.rows(r), out]
        grid = (parts.tiles(r, schedule), 1, tile.param("B"))
        return parts.program(builder, r, spec.name, tensors, grid)


def _slope(spec: RouterGrad, at: Tokens) -> tuple[Node, list[Tensor]]:
    """The gradient of the scores [m,n], and what it is read from beside shares and ids."""
    r, shares, found, tensors = spec.router, at.shares(), list[Node](), list[Tensor]()
    if spec.grad_weights is not None:
        grad, chosen = Tensor(spec.grad_weights, "float32", ("B", r.length, 1, r.slots)), at.chosen()
        limit: dict[int, tile.Value] = {1: tile.param(r.length)}
        given = [tile.load(grad, at.batch, at.token, 0, slot, bounds=dict(limit)) for slot in range(r.slots)]
        slopes = [tile.apply(Fn.WHERE, here, x, 0.0) for here, x in zip(chosen, given, strict=True)]
        own = shares
        if r.renormalise:
            own = mul(shares, parts.any_of(chosen))
            total = tile.reduce("sum", own, at.parts)
            own = tile.apply(Fn.DIV, own, tile.apply(Fn.WHERE, tile.apply(Fn.LT, 0.0, total), total, 1.0))
        found.append(_through_softmax(at, own, reduce(add, slopes)))
        tensors.append(grad)
    if spec.loss is not None and spec.grad_loss is not None:
        often, grad_loss = Tensor(spec.loss.slopes, "float32", (r.parts,)), Tensor(spec.grad_loss, "float32", ())
        slope = mul(tile.load(grad_loss), tile.load(often, at.part, bounds={0: r.parts}))
        found.append(_through_softmax(at, shares, slope))
        tensors += [often, grad_loss]
    return mul(reduce(add, found), r.scale), tensors


def _through_softmax(at: Tokens, shares: Node, slope: Node) -> Node:
    product = mul(shares, slope)
    return sub(product, mul(shares, tile.reduce("sum", product, at.parts)))


def _product(slope: Node, x: Node, over: Axis, total: Node | None, schedule: Schedule) -> Node:
    """Slopes times x or rows as they are given: as two halves where x is bf16, as small as slopes may be."""
    if x.dtype != "bfloat16":
        return tile.dot(slope, tile.cast(x, "float32"), over, total, schedule.precision)
    found = total
    for part in halves(slope, x.dtype):
        found = tile.dot(part, x, over, found)
    assert found is not None
    return found


def _spread(builder: tile.Builder, spec: RouterGrad, at: Tokens, slope: Node, out: Tensor, schedule: Schedule) -> None:
    """dx = dS W, column block by column block."""
    r, dims = spec.router, builder.axis("d", BLOCK)

    def visit(block: Node) -> Sequence[Node]:
        column, bound = parts.columns(r, block, dims)
        own: dict[int, tile.Value] = {0: r.parts, **{dim - 1: n for dim, n in bound.items()}}
        rows = tile.load(parts.rows(r), at.part, 0, column, bounds=own)
        value = tile.cast(_product(slope, rows, at.parts, None, schedule), out.dtype)
        limit: dict[int, tile.Value] = {1: tile.param(r.length), **bound}
        tile.store(out, at.batch, at.token, 0, column, value=value, bounds=limit)
        return []

    tile.loop(0, -(-r.dim // BLOCK), 1, [], visit)


def _rows(spec: RouterGrad, schedule: Schedule) -> Program:
    """dW = dSᵀ x of one stretch; one (stretch, block of columns, batch) per grid point."""
    r = spec.router
    with tile.Builder() as builder:
        at = parts.tokens(builder, r, schedule, mul(tile.program_id(0), LONG), tile.program_id(2))
        dims = builder.axis("d", BLOCK)
        column, bound = parts.columns(r, tile.program_id(1), dims)

        def visit(n: Node, total: Node) -> Sequence[Node]:
            token, length = add(at.token, mul(n, schedule.rows)), tile.param(r.length)
            slope = tile.load(_scores(spec), at.batch, token, at.part, bounds={1: length, 2: r.parts})
            x = tile.load(parts.x(r), at.batch, token, 0, column, bounds={1: length, **bound})
            return [_product(slope, x, at.rows, total, schedule)]

        start = [tile.full(0.0, at.parts, dims)]
        (total,) = tile.loop(0, LONG // schedule.rows, 1, start, visit)
        limits: dict[int, tile.Value] = {2: r.parts, **bound}
        tile.store(_made(spec), at.batch, tile.program_id(0), at.part, column, value=total, bounds=limits)
        tensors = [parts.x(r), _scores(spec), _made(spec)]
        grid = (tile.param(STRETCHES), -(-r.dim // BLOCK), tile.param("B"))
        return parts.program(builder, r, f"{spec.name}_rows", tensors, grid, STRETCHES)


def _sum(spec: RouterGrad, schedule: Schedule) -> Program:
    """The sum over stretches and batch entries; one block of columns per grid point."""
    r = spec.router
    assert spec.grad_rows is not None
    with tile.Builder() as builder:
        at = parts.tokens(builder, r, schedule, tile.const(0), tile.const(0))
        dims = builder.axis("d", BLOCK)
        column, bound = parts.columns(r, tile.program_id(0), dims)
        limits: dict[int, tile.Value] = {2: r.parts, **bound}

        def document(batch: Node, total: Node) -> Sequence[Node]:
            def visit(stretch: Node, so_far: Node) -> Sequence[Node]:
                return [add(so_far, tile.load(_made(spec), batch, stretch, at.part, column, bounds=dict(limits)))]

            return tile.loop(0, tile.param(STRETCHES), 1, [total], visit)

        (total,) = tile.loop(0, tile.param("B"), 1, [tile.full(0.0, at.parts, dims)], document)
        out = Tensor(spec.grad_rows, spec.rows_dtype, (r.parts, 1, r.dim))
        own: dict[int, tile.Value] = {0: r.parts, **{dim - 1: n for dim, n in bound.items()}}
        tile.store(out, at.part, 0, column, value=tile.cast(total, out.dtype), bounds=own)
        tensors, grid = [_made(spec), out], (-(-r.dim // BLOCK),)
        return parts.program(builder, r, f"{spec.name}_sum", tensors, grid, STRETCHES)


def default(spec: RouterGrad, target: str) -> Schedule:
    """Tiles of 32 tokens; products of fp32 as three of tf32 on a GPU."""
    if not target.startswith("triton"):
        return Schedule(rows=8, lanes=("d", "n"), split_dims=False)
    return Schedule(rows=32, warps=4, stages=2, precision="tf32x3")


def space(spec: RouterGrad, target: str) -> dict[str, tuple[object, ...]]:
    """Tokens of a tile, warps and stages."""
    if not target.startswith("triton"):
        return {"rows": (4, 8, 16)}
    return {"rows": (16, 32, 64), "warps": (2, 4, 8), "stages": (1, 2, 3)}
