"""The block list of a predicate that cannot be bounded: which key tiles hold a visible pair, per query tile.

Transposed, for the backward: which query tiles do, per key tile.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.scalars import add, both, captured, ceil_div, emit, least, mul, sub
from sparsec.lower.tiled import given_list
from sparsec.plan.specs import BlockList
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: BlockList, schedule: Schedule) -> Program:
    """One (query tile, head, batch) per grid point walks all key tiles and keeps the ids of those that matter.

    Transposed, one (key tile, head, batch) walks all query tiles.
    """
    if spec.given is not None:
        return given_list.lower(spec, schedule)
    with tile.Builder() as builder:
        rows, keys = builder.axis("m", spec.block_q), builder.axis("n", spec.block_k)
        tensors = captured(spec.captures)
        tiles = ("LK", "LQ") if spec.transposed else ("LQ", "LK")
        ids = Tensor(spec.ids, "int32", ("LB", "LH", *tiles))
        counts = Tensor(spec.counts, "int32", ("LB", "LH", tiles[0]))
        own, head, batch = (tile.program_id(d) for d in range(3))
        params = [(n, "int32") for n in dict.fromkeys(["B", "TQ", "TK", "q_offset", spec.length])]
        env = {name: tile.param(name) for name, _ in params} | {"b": batch, "h": head}

        def visit(at: Node, count: Node) -> Sequence[Node]:
            query_tile, key_tile = (at, own) if spec.transposed else (own, at)
            query = add(mul(query_tile, spec.block_q), tile.iota(rows))
            key = add(mul(key_tile, spec.block_k), tile.iota(keys))
            seen = tile.apply(Fn.WHERE, _seen(spec, query, key, env, tensors), 1, 0)
            found = tile.reduce("max", tile.reduce("max", seen, keys), rows)
            tile.store(ids, batch, head, own, count, value=at)
            return [add(count, found)]

        lengths = (ceil_div(tile.param("TQ"), spec.block_q), ceil_div(tile.param(spec.length), spec.block_k))
        outer, inner = reversed(lengths) if spec.transposed else lengths
        (count,) = tile.loop(0, inner, 1, [tile.const(0)], visit)
        tile.store(counts, batch, head, own, value=count)
        grid = (outer, tile.const(spec.heads), tile.param("B") if spec.per_batch else tile.const(1))
        return builder.program(spec.name, [*tensors.values(), ids, counts], params, grid)


def _seen(spec: BlockList, query: Node, key: Node, env: dict[str, Node], tensors: dict[str, Tensor]) -> Node:
    """The pairs of a tile that exist and are visible."""
    assert spec.where is not None
    length, queries = tile.param(spec.length), tile.param("TQ")
    inside = both(tile.apply(Fn.LT, key, length), tile.apply(Fn.LT, query, queries))
    position = add(_readable(spec, query, queries), tile.param("q_offset"))
    here = {**env, "i": position, "j": _readable(spec, key, length)}
    return both(emit(spec.where, here, tensors), inside)


def _readable(spec: BlockList, index: Node, length: Node) -> Node:
    """Rows or keys; where the predicate reads captured tensors, those past the last repeat it."""
    return least(index, sub(length, 1)) if spec.captures else index


def default(spec: BlockList, target: str) -> Schedule:
    """Tiles are the list's own, so that only warps remain to choose."""
    if target.startswith("tvm"):
        return Schedule(rows=spec.block_q, block=spec.block_k, lanes=("n", "m"), split_dims=False, warps=1, stages=1)
    return Schedule(rows=spec.block_q, block=spec.block_k, warps=8, stages=1)
