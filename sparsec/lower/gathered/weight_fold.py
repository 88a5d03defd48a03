"""Gradients of chunk weights where several row tiles share a list: what each found, added up."""

from __future__ import annotations

from sparsec.lower.gathered import chunks
from sparsec.lower.scalars import add, ceil_div, mul
from sparsec.plan.grad_specs import GatheredGradQ
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: GatheredGradQ, parts: Tensor, schedule: Schedule) -> Program:
    """``[B, TQ, row tiles, K]`` to ``[B, TQ, HS, K]``: one (some tokens, list, batch) per grid point."""
    assert spec.grad_weights is not None and isinstance(parts.shape[2], int)
    lists = chunks.lists(spec.forward)
    each = parts.shape[2] // lists
    with tile.Builder() as builder:
        tokens = builder.axis("m", schedule.rows)
        slots = builder.axis("s", 1 << (spec.forward.slots - 1).bit_length())
        token = add(mul(tile.program_id(0), schedule.rows), tile.iota(tokens))
        bounds: dict[int, tile.Value] = {1: tile.param("TQ"), 3: spec.forward.slots}

        def place(number: Node) -> tuple[Node, ...]:
            return tile.program_id(2), token, number, tile.iota(slots)

        def visit(n: Node, total: Node) -> list[Node]:
            number = add(mul(tile.program_id(1), each), n)
            return [add(total, tile.load(parts, *place(number), bounds=dict(bounds)))]

        (total,) = tile.loop(0, each, 1, [tile.full(0.0, tokens, slots)], visit)
        target = Tensor(spec.grad_weights, "float32", ("B", "TQ", lists, spec.forward.slots))
        tile.store(target, *place(tile.program_id(1)), value=total, bounds=bounds)
        grid = (ceil_div(tile.param("TQ"), schedule.rows), tile.const(lists), tile.param("B"))
        params = [(name, "int32") for name in chunks.PARAMS]
        return builder.program(f"{spec.name}_fold", [parts, target], params, grid)
