"""The sums of what several programs found for the same keys, always in the same order."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.lowered import Scratch
from sparsec.lower.pieces import spans
from sparsec.lower.scalars import add, ceil_div, least, mul
from sparsec.lower.tiled.grad import params
from sparsec.plan.grad_specs import TiledGradKV
from sparsec.scalar.expr import constant, var
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule

ROWS = 8
"""Keys per program: small, so that there are many programs."""


def parts(spec: TiledGradKV, out: Tensor, schedule: Schedule, wide: int | str) -> Tensor:
    """The scratch ``[splits, B, keys, HKV, D]`` of one gradient; one batch where the keys have none."""
    batched = spec.forward.pieces[spec.piece].batched
    keys = wide if isinstance(wide, str) else wide * schedule.block
    shape = (schedule.splits, "B" if batched else 1, keys, *out.shape[-2:])
    return Tensor(f"{out.name}_parts", "float32", shape)


def scratch(part: Tensor, spec: TiledGradKV) -> Scratch:
    """The buffer to allocate."""
    return Scratch(part.name, tuple(var(n) if isinstance(n, str) else constant(n) for n in part.shape), "float32")


def shared_keys(wide: int | str, schedule: Schedule) -> Node | int:
    """How many of the first keys are shared out, in whole tiles."""
    return tile.param(wide) if isinstance(wide, str) else wide * schedule.block


def program(spec: TiledGradKV, schedule: Schedule, wide: int | str, outs: Sequence[tuple[Tensor, Tensor]]) -> Program:
    """One (some keys, key/value head, batch) per grid point."""
    forward = spec.forward
    piece = forward.pieces[spec.piece]
    with tile.Builder() as builder:
        keys = builder.axis("n", ROWS)
        head, batch = tile.program_id(1), tile.program_id(2)
        key = add(mul(tile.program_id(0), ROWS), tile.iota(keys))
        shared = least(tile.param(piece.length), shared_keys(wide, schedule))
        for number, (out, part) in enumerate(outs):
            width = out.shape[-1]
            assert isinstance(width, int)
            for span in spans(builder, f"d{number}", width, schedule):
                at = (batch, key, head, span.index())
                total = _total(part, at, schedule.splits, {2: shared}, tile.full(0.0, keys, span.axis))
                place = at if piece.batched else at[1:]
                bounds: dict[int, tile.Value] = {int(piece.batched): shared}
                tile.store(out, *place, value=tile.cast(total, out.dtype), bounds=bounds)
        grid = (ceil_div(shared, ROWS), tile.const(forward.kv_heads), tile.param("B") if piece.batched else 1)
        tensors = [t for pair in outs for t in pair]
        return builder.program(f"{spec.name}_sum", tensors, params(forward), grid)


def _total(part: Tensor, at: tuple[Node, ...], splits: int, bounds: dict[int, tile.Value], start: Node) -> Node:
    """The sum over the first dimension."""

    def visit(n: Node, total: Node) -> list[Node]:
        return [add(total, tile.load(part, n, *at, bounds=bounds))]

    return tile.loop(0, splits, 1, [start], visit)[0]
