"""Gradients of the tokens under mean summaries: each token gathers its share of the windows that hold it."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.pieces import spans
from sparsec.lower.scalars import add, both, ceil_div, least, mul, sub
from sparsec.plan.grad_specs import SummariseGrad
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule, ScheduleError


def lower(spec: SummariseGrad, schedule: Schedule) -> Program:
    """grad ``[B,N,heads,dim]`` -> grad_x ``[B,TK,heads,dim]``; one (tile of tokens, head, batch) per grid point."""
    checked(schedule)
    own = spec.forward
    with tile.Builder() as builder:
        tokens, dims = builder.axis("s", schedule.block), spans(builder, "d", own.dim, schedule)
        grad = Tensor(spec.grad, spec.grad_dtype, ("B", own.length, own.heads, own.dim))
        grad_x = Tensor(spec.grad_x, spec.out_dtype, ("B", "TK", own.heads, own.dim))
        head, batch = tile.program_id(1), tile.program_id(2)
        token = add(mul(tile.program_id(0), schedule.block), tile.iota(tokens))

        def visit(back: Node, *sums: Node) -> Sequence[Node]:
            window, holds, count = window_of(spec, token, back)
            weight = tile.apply(Fn.WHERE, holds, tile.apply(Fn.DIV, 1.0, tile.cast(count, "float32")), 0.0)
            found = (tile.load(grad, batch, window, head, d.index(), bounds={1: tile.param(own.length)}) for d in dims)
            return [add(x, mul(tile.cast(g, "float32"), weight)) for x, g in zip(sums, found, strict=True)]

        sums = tile.loop(0, -(-own.size // own.stride), 1, [tile.full(0.0, tokens, d.axis) for d in dims], visit)
        for span, value in zip(dims, sums, strict=True):
            place = (batch, token, head, span.index())
            tile.store(grad_x, *place, value=tile.cast(value, spec.out_dtype), bounds={1: tile.param("TK")})
        params = [(name, "int32") for name in dict.fromkeys(["B", "TQ", "TK", "q_offset", own.length])]
        grid = (ceil_div(tile.param("TK"), schedule.block), tile.const(own.heads), tile.param("B"))
        return builder.program(spec.name, [grad, grad_x], params, grid)


def checked(schedule: Schedule) -> None:
    """ScheduleError where tiles of tokens are none that a schedule may have."""
    if schedule.block & (schedule.block - 1):
        raise ScheduleError(f"block {schedule.block} is not a power of two; tokens are written in tiles of 1, 2, 4, …")


def window_of(spec: SummariseGrad, token: Node, back: Node) -> tuple[Node, Node, Node]:
    """The window that begins ``back`` windows before each token's last one, whether it holds the token, and its tokens.

    Where it does not, the window is past the last one.
    """
    own = spec.forward
    window = sub(tile.apply(Fn.TRUNCDIV, token, own.stride), back)
    start = mul(window, own.stride)
    holds = both(tile.apply(Fn.LE, 0, window), tile.apply(Fn.LT, token, add(start, own.size)))
    holds = both(holds, tile.apply(Fn.LT, token, tile.param("TK")))
    count = tile.apply(Fn.WHERE, holds, least(sub(tile.param("TK"), start), own.size), 1)
    return tile.apply(Fn.WHERE, holds, window, tile.param(own.length)), holds, count


def default(spec: SummariseGrad, target: str) -> Schedule:
    """Tiles of up to 4096 elements: the kernel only moves memory."""
    triton = target.startswith("triton")
    block = max(8, 1 << (4096 // spec.forward.dim).bit_length() - 1) if triton else 16
    return Schedule(block=min(block, 64), warps=4, stages=2, lanes=("d",), split_dims=triton)


def space(spec: SummariseGrad, target: str) -> dict[str, tuple[object, ...]]:
    """Tokens per tile, and warps."""
    blocks = (8, 16, 32, 64)
    return {"block": blocks, "warps": (2, 4, 8)} if target.startswith("triton") else {"block": blocks}
