"""The block list of a predicate that cannot be bounded: which key tiles hold a visible pair, per query tile."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.scalars import add, both, captured, ceil_div, emit, least, mul, sub
from sparsec.plan.specs import BlockList
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: BlockList, schedule: Schedule) -> Program:
    """One (query tile, head, batch) per grid point walks all key tiles and keeps the ids of those that matter."""
    with tile.Builder() as builder:
        rows, keys = builder.axis("m", spec.block_q), builder.axis("n", spec.block_k)
        tensors = captured(spec.captures)
        ids = Tensor(spec.ids, "int32", ("LB", "LH", "LQ", "LK"))
        counts = Tensor(spec.counts, "int32", ("LB", "LH", "LQ"))
        row, head, batch = (tile.program_id(d) for d in range(3))
        first, length = mul(row, spec.block_q), tile.param(spec.length)
        query = add(first, tile.iota(rows))
        params = [(n, "int32") for n in dict.fromkeys(["B", "TQ", "TK", "q_offset", spec.length])]
        env = {name: tile.param(name) for name, _ in params}
        env |= {"b": batch, "h": head, "i": add(_readable(spec, query, tile.param("TQ")), tile.param("q_offset"))}

        def visit(at: Node, count: Node) -> Sequence[Node]:
            key = add(mul(at, spec.block_k), tile.iota(keys))
            inside = both(tile.apply(Fn.LT, key, length), tile.apply(Fn.LT, query, tile.param("TQ")))
            here = {**env, "j": _readable(spec, key, length)}
            seen = tile.apply(Fn.WHERE, both(emit(spec.where, here, tensors), inside), 1, 0)
            found = tile.reduce("max", tile.reduce("max", seen, keys), rows)
            tile.store(ids, batch, head, row, count, value=at)
            return [add(count, found)]

        (count,) = tile.loop(0, ceil_div(length, spec.block_k), 1, [tile.const(0)], visit)
        tile.store(counts, batch, head, row, value=count)
        grid = (
            ceil_div(tile.param("TQ"), spec.block_q),
            tile.const(spec.heads),
            tile.param("B") if spec.per_batch else tile.const(1),
        )
        return builder.program(spec.name, [*tensors.values(), ids, counts], params, grid)


def _readable(spec: BlockList, index: Node, length: Node) -> Node:
    """Rows or keys; where the predicate reads captured tensors, those past the last repeat it."""
    return least(index, sub(length, 1)) if spec.captures else index


def default(spec: BlockList, target: str) -> Schedule:
    """Tiles are the list's own, so that only warps remain to choose."""
    if target.startswith("tvm"):
        return Schedule(rows=spec.block_q, block=spec.block_k, lanes=("n", "m"), split_dims=False, warps=1, stages=1)
    return Schedule(rows=spec.block_q, block=spec.block_k, warps=8, stages=1)
