"""Gradients of chunks that were cut into shares: the partial sums, added up in order."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.gathered.grad_kv import Target, targets
from sparsec.lower.gathered.grad_walk import forward, grid, task
from sparsec.lower.inverse import shares
from sparsec.lower.inverse.shares import Share
from sparsec.lower.pieces import Span, spans
from sparsec.lower.scalars import add, least, most, mul
from sparsec.plan.grad_specs import GatheredGradKV
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program
from sparsec.tile.schedule import Schedule


def lower(spec: GatheredGradKV, schedule: Schedule) -> Program:
    """The kernel of one (share and part of a chunk, key/value head, batch) per grid point; only first shares add."""
    with tile.Builder() as builder:
        own, (found, at, share, part) = forward(spec), task(spec, schedule)
        key_head = tile.program_id(1)
        keys, wanted = builder.axis("n", schedule.block), targets(spec, schedule)
        local = add(mul(part, schedule.block), tile.iota(keys))
        limit = least(mul(add(share.chunk, 1), own.chunk), tile.param("TK"))
        limit = tile.apply(Fn.WHERE, tile.apply(Fn.LT, 0, share.pieces), limit, 0)
        key = add(mul(most(share.chunk, 0), own.chunk), local)
        for number, goal in enumerate(wanted):
            columns = spans(builder, "de"[number], _dim(goal), schedule)
            totals = _add(goal, (at[0], key_head), share, local, keys, columns)
            for span, total in zip(columns, totals, strict=True):
                place = (at[0], key, key_head, span.index())
                tile.store(goal.out, *place, value=tile.cast(total, goal.out.dtype), bounds={1: limit})
        tensors = [shares.buffer(own, found), *(t for goal in wanted for t in (goal.partial, goal.out))]
        params = [(name, "int32") for name in shares.PARAMS]
        return builder.program(f"{spec.name}_sum", tensors, params, grid(own, schedule))


def _dim(goal: Target) -> int:
    dim = goal.out.shape[-1]
    assert isinstance(dim, int)
    return dim


def _add(
    goal: Target, at: tuple[Node, Node], share: Share, local: Node, keys: Axis, columns: Sequence[Span]
) -> list[Node]:
    """The sum over a chunk's shares."""

    def visit(n: Node, *totals: Node) -> Sequence[Node]:
        place = add(share.place, n)
        return [
            add(total, tile.load(goal.partial, *at, place, local, span.index()))
            for span, total in zip(columns, totals, strict=True)
        ]

    return tile.loop(0, share.pieces, 1, [tile.full(0.0, keys, span.axis) for span in columns], visit)
