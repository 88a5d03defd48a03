"""Gradients of chunks that were cut into shares: the partial sums, added up in order."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower import inverse, shares
from sparsec.lower.gathered_grad_kv import Target, forward, targets
from sparsec.lower.pieces import Span, spans
from sparsec.lower.scalars import add, least, most, mul
from sparsec.lower.shares import Share
from sparsec.plan.grad_specs import GatheredGradKV
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program
from sparsec.tile.schedule import Schedule


def lower(spec: GatheredGradKV, schedule: Schedule) -> Program:
    """The kernel of one (share and part of a chunk, key/value head, batch) per grid point; only first shares add."""
    with tile.Builder() as builder:
        own, parts = forward(spec), -(-spec.forward.chunk // schedule.block)
        found = inverse.inverse(own, schedule, complete=True)
        listed, key_head = shares.buffer(own, found), tile.program_id(1)
        at = (tile.program_id(2), key_head if found.sets > 1 else tile.const(0))
        share = shares.read(listed, at, tile.apply(Fn.TRUNCDIV, tile.program_id(0), parts))
        part = tile.apply(Fn.TRUNCMOD, tile.program_id(0), parts) if parts > 1 else tile.const(0)
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
        tensors = [listed, *(t for goal in wanted for t in (goal.partial, goal.out))]
        grid = (mul(tile.param("WT"), parts), tile.const(own.kv_heads), tile.param("B"))
        return builder.program(f"{spec.name}_sum", tensors, [(name, "int32") for name in shares.PARAMS], grid)


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
