"""Gradients of the sinks inside chosen chunks: a program per token walks its list, and two add the rows up."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower import sink_sum
from sparsec.lower.gathered import chunk_grad, chunks, grad, grad_schedules
from sparsec.lower.gathered.query_outer import chunk_at, count, row_tile, scores_at, tiles
from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scalars import add, ceil_div, mul
from sparsec.plan.attention.capture_specs import GatheredGradCapture
from sparsec.plan.attention.sink_specs import ChunkSinkGrad
from sparsec.plan.grad_specs import GatheredGradQ
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule

ROWS = 32
"""Rows of a head that are added up at once."""


def lower(spec: ChunkSinkGrad, schedule: Schedule) -> Lowered:
    """grad ``[B,TQ,H,DV]`` -> sink_grad ``[H]``."""
    grad_schedules.check(spec.forward, schedule, ("query_outer",))
    small = Schedule(rows=ROWS, warps=4, stages=2, lanes=("p", "m"), split_dims=schedule.split_dims)
    heads, rows = spec.forward.heads, _rows(spec)
    steps = (
        Step(_walk(spec, schedule), schedule),
        Step(_tiles(spec), small, flat=True),
        Step(sink_sum.program(spec.name, spec.sink_grad, heads, ROWS), small, flat=True),
    )
    return Lowered(steps, (as_scratch(rows), sink_sum.scratch(spec.name, heads, ROWS)))


def _rows(spec: ChunkSinkGrad) -> Tensor:
    return Tensor(f"{spec.name}_rows", "float32", ("B", "TQ", spec.forward.heads))


def _walk(spec: ChunkSinkGrad, schedule: Schedule) -> Program:
    """What each row's sinks hand back, one (token, row tile, batch) per grid point."""
    own = GatheredGradQ(spec.name, spec.forward, spec.grad, None, None, None, spec.grad_dtype, "float32")
    with tile.Builder() as builder:
        rows, at = row_tile(builder, spec.forward, schedule, tile.program_id(1))
        pull, tensors = grad.begin(builder, own, schedule, rows, at, None)
        out = _rows(spec)
        tile.store(out, *rows.place(tile.program_id(2)), value=_list(pull), bounds=dict(rows.bounds))
        grid = (tile.param("TQ"), tile.const(tiles(spec.forward, schedule)), tile.param("B"))
        params = [(name, "int32") for name in chunks.PARAMS]
        return builder.program(spec.name, [*tensors.values(), out], params, grid)


def _list(pull: grad.Pull) -> Node:
    """The sum of weight * share of the sink * mean over a row's chunks."""
    f = pull.f
    assert f.spec.weights is not None, "a softmax per chunk needs weights"
    weights = f.tensors[f.spec.weights]

    def visit(slot: Node, total: Node) -> Sequence[Node]:
        chunk = chunk_at(f, slot)
        used = tile.apply(Fn.LE, 0, chunk)
        weight = tile.apply(Fn.WHERE, used, tile.load(weights, f.batch, f.rows.token, f.listed, slot), 0.0)
        found = chunk_grad.own_softmax(f, pull.a, lambda part: scores_at(f, chunk, part))
        assert found.sink is not None
        back = tile.apply(Fn.WHERE, used, mul(found.mean, found.sink), 0.0)
        return [add(total, mul(back, weight))]

    stages = f.schedule.stages if chunks.parts(f) == 1 else None
    return tile.loop(0, count(f), 1, [tile.full(0.0, f.rows.axis)], visit, stages)[0]


def _tiles(spec: ChunkSinkGrad) -> Program:
    """Sums of tiles of rows."""
    with tile.Builder() as builder:
        rows, read_from, length = builder.axis("m", ROWS), _rows(spec), tile.param("TQ")
        number, head, batch = (tile.program_id(d) for d in range(3))
        row = add(mul(number, ROWS), tile.iota(rows))
        value = tile.load(read_from, batch, row, head, bounds={1: length})
        out = sink_sum.shares(spec.name, spec.forward.heads)
        tile.store(out, head, batch, number, value=tile.reduce("sum", value, rows))
        grid = (ceil_div(length, ROWS), tile.const(spec.forward.heads), tile.param("B"))
        return builder.program(f"{spec.name}_tiles", [read_from, out], sink_sum.PARAMS, grid)


def default(spec: ChunkSinkGrad | GatheredGradCapture, target: str) -> Schedule:
    """All heads that share a list; on a GPU as many rows as tensor cores need. Not measured on a GPU."""
    share = chunks.sharing(spec.forward)
    if not target.startswith("triton"):
        block = grad_schedules.key_block(spec.forward)
        return Schedule(rows=share, block=block, lanes=("n", "d", "e"), split_dims=False)
    block = min(grad_schedules.tensor_block(spec.forward), 32)
    return Schedule(rows=min(64, max(16, 1 << (share - 1).bit_length())), block=block, warps=4, stages=2)


def space(spec: ChunkSinkGrad | GatheredGradCapture, target: str) -> dict[str, tuple[object, ...]]:
    """Keys of a tile, warps and stages."""
    if not target.startswith("triton"):
        return {}
    block = grad_schedules.tensor_block(spec.forward)
    return {"block": tuple(b for b in (16, 32, 64) if b <= block) or (block,), "warps": (2, 4, 8), "stages": (1, 2, 3)}
