"""Gradients of the tokens under maxima of windows: what holds a window's maximum has its gradient, equals alike shares.

One program divides each window's gradient by how many of its tokens hold the maximum; the next gives it to them.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.pieces import Span, spans
from sparsec.lower.scalars import add, ceil_div, least, most, mul
from sparsec.lower.summarise_grad import checked, window_of
from sparsec.plan.grad_specs import SummariseGrad
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: SummariseGrad, schedule: Schedule) -> Lowered:
    """grad ``[B,N,heads,dim]`` -> grad_x ``[B,TK,heads,dim]``."""
    checked(schedule)
    steps = (Step(_shares(spec, schedule), schedule), Step(_spread(spec, schedule), schedule))
    return Lowered(steps, (as_scratch(_shared(spec)),))


def _shared(spec: SummariseGrad) -> Tensor:
    """Each window's gradient over the number of tokens that hold its maximum."""
    own = spec.forward
    return Tensor(f"{spec.name}_shares", "float32", ("B", own.length, own.heads, own.dim))


def _tensors(spec: SummariseGrad) -> tuple[Tensor, Tensor]:
    """Tokens and maxima."""
    own = spec.forward
    x = Tensor(own.x, own.dtype, ("B", "TK", own.heads, own.dim))
    return x, Tensor(own.out, own.out_dtype, ("B", own.length, own.heads, own.dim))


def _params(spec: SummariseGrad) -> list[tuple[str, str]]:
    return [(name, "int32") for name in dict.fromkeys(["B", "TQ", "TK", "q_offset", spec.forward.length])]


def _holds(x: Node, top: Node) -> Node:
    return tile.apply(Fn.EQ, tile.cast(x, "float32"), tile.cast(top, "float32"))


def _shares(spec: SummariseGrad, schedule: Schedule) -> Program:
    """One window of one head and batch per grid point."""
    own = spec.forward
    with tile.Builder() as builder:
        tokens, dims = builder.axis("s", schedule.block), spans(builder, "d", own.dim, schedule)
        (x, maxima), shared = _tensors(spec), _shared(spec)
        grad = Tensor(spec.grad, spec.grad_dtype, shared.shape)
        window, head, batch = (tile.program_id(d) for d in range(3))
        start = mul(window, own.stride)
        end = least(add(start, own.size), tile.param("TK"))
        tops = [tile.load(maxima, batch, window, head, d.index()) for d in dims]

        def visit(at: Node, *counts: Node) -> Sequence[Node]:
            token = add(add(start, at), tile.iota(tokens))
            inside = tile.apply(Fn.LT, token, end)
            return [add(n, _count(d, top, token, inside)) for n, d, top in zip(counts, dims, tops, strict=True)]

        def _count(span: Span, top: Node, token: Node, inside: Node) -> Node:
            found = tile.load(x, batch, token, head, span.index(), bounds={1: end})
            one = tile.apply(Fn.WHERE, tile.apply(Fn.AND, inside, _holds(found, top)), 1.0, 0.0)
            return tile.reduce("sum", one, tokens)

        counts = tile.loop(0, own.size, schedule.block, [tile.full(0.0, d.axis) for d in dims], visit)
        for span, count in zip(dims, counts, strict=True):
            place = (batch, window, head, span.index())
            share = tile.apply(Fn.DIV, tile.cast(tile.load(grad, *place), "float32"), most(count, 1.0))
            tile.store(shared, *place, value=share)
        grid = (tile.param(own.length), tile.const(own.heads), tile.param("B"))
        return builder.program(f"{spec.name}_shares", [x, maxima, grad, shared], _params(spec), grid)


def _spread(spec: SummariseGrad, schedule: Schedule) -> Program:
    """One (tile of tokens, head, batch) per grid point."""
    own = spec.forward
    with tile.Builder() as builder:
        tokens, dims = builder.axis("s", schedule.block), spans(builder, "d", own.dim, schedule)
        (x, maxima), shared = _tensors(spec), _shared(spec)
        grad_x = Tensor(spec.grad_x, spec.out_dtype, x.shape)
        head, batch = tile.program_id(1), tile.program_id(2)
        token = add(mul(tile.program_id(0), schedule.block), tile.iota(tokens))
        here: dict[int, tile.Value] = {1: tile.param("TK")}
        given = [tile.load(x, batch, token, head, d.index(), bounds=dict(here)) for d in dims]

        def visit(back: Node, *sums: Node) -> Sequence[Node]:
            window, holds, _ = window_of(spec, token, back)
            place, bounds = (batch, window, head), {1: tile.param(own.length)}
            found = []
            for total, span, value in zip(sums, dims, given, strict=True):
                top, share = (tile.load(t, *place, span.index(), bounds=dict(bounds)) for t in (maxima, shared))
                mine = tile.apply(Fn.AND, holds, _holds(value, top))
                found.append(add(total, tile.apply(Fn.WHERE, mine, share, 0.0)))
            return found

        sums = tile.loop(0, -(-own.size // own.stride), 1, [tile.full(0.0, tokens, d.axis) for d in dims], visit)
        for span, value in zip(dims, sums, strict=True):
            place = (batch, token, head, span.index())
            tile.store(grad_x, *place, value=tile.cast(value, spec.out_dtype), bounds=dict(here))
        grid = (ceil_div(tile.param("TK"), schedule.block), tile.const(own.heads), tile.param("B"))
        return builder.program(spec.name, [x, maxima, shared, grad_x], _params(spec), grid)
