"""Gradients of all keys that an index scored, from a dense loss: each program has a tile of keys and walks the queries.

The attention of a query's heads on the tile is computed again; what the shares of the queries give is added up after.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scalars import add, ceil_div, least, mul
from sparsec.lower.select import dense_walk, divergence, index_rows, key_shares
from sparsec.lower.select.dense_walk import Keys
from sparsec.lower.select.key_shares import KeyShares
from sparsec.plan.selection.signal_specs import DenseGradKeys
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: DenseGradKeys, schedule: Schedule) -> Lowered:
    """grad ``[B,TQ,HS]`` -> grad_keys ``[B,N,HKV,D]``, by the sums of ``schedule.splits`` shares of the queries."""
    shares = KeyShares(spec.name, spec.index, spec.grad_keys, spec.out_dtype)
    parts = key_shares.parts(shares, schedule)
    steps = (Step(_walk(spec, schedule, parts), schedule), Step(key_shares.total(shares, schedule), schedule))
    return Lowered(steps, (as_scratch(parts),))


def _walk(spec: DenseGradKeys, schedule: Schedule, parts: Tensor) -> Program:
    """The kernel of one (tile of keys and share of the queries, key head, batch) per grid point."""
    own, splits, loss = spec.index, schedule.splits, spec.loss
    assert loss.dense is not None
    lists = index_rows.lists(own) // own.kv_heads
    with tile.Builder() as builder:
        first = mul(tile.program_id(1), lists)
        c = dense_walk.keys(builder, loss.dense, own, schedule, first)
        at, part = key_shares.tile_number(splits)
        rows = [divergence.row(own, name) for name in (loss.total, loss.lse, spec.grad)]
        each = ceil_div(tile.param("TQ"), splits)
        start = mul(part, each)
        end = least(add(start, each), tile.param("TQ"))

        def visit(token: Node, *sums: Node) -> Sequence[Node]:
            return _lists(spec, c, rows, first, lists, at, token, sums)

        inits = [tile.full(0.0, c.keys, d.axis) for d in c.own.dims]
        sums = tile.loop(start, end, 1, inits, visit)
        for d, total in zip(c.own.dims, sums, strict=True):
            place = (c.own.batch, tile.program_id(1), part, c.key(at), d.index())
            tile.store(parts, *place, value=total, bounds={3: tile.param(own.key_length)})
        tensors = list(dict.fromkeys([*index_rows.tensors(own), *c.tensors, *rows, parts]))
        grid = (mul(ceil_div(tile.param(own.key_length), schedule.block), splits), tile.const(own.kv_heads))
        return builder.program(spec.name, tensors, key_shares.params(own), (*grid, tile.param("B")))


def _lists(
    spec: DenseGradKeys, c: Keys, rows: Sequence[Tensor], first: Node, lists: int, at: Node, token: Node,
    sums: Sequence[Node],
) -> Sequence[Node]:  # fmt: skip
    """Add what every list of a token that scores these keys gives."""
    if lists == 1:
        return _add(spec, c.at(token, first), rows, at, sums)

    def visit(n: Node, *carried: Node) -> Sequence[Node]:
        return _add(spec, c.at(token, add(first, n)), rows, at, carried)

    return tile.loop(0, lists, 1, sums, visit)


def _add(spec: DenseGradKeys, c: Keys, rows: Sequence[Tensor], at: Node, sums: Sequence[Node]) -> list[Node]:
    own = c.own
    product = own.products(c.key(at))
    scores = mul(own.active(product), own.weights)
    scores = scores if own.rows is None else tile.reduce("sum", scores, own.rows)
    slope = mul(divergence.Slope(spec.loss, c, rows).of(c.masses(at), scores), own.weights)
    if own.spec.head_weights is not None and own.rows is not None:
        slope = tile.apply(Fn.WHERE, tile.apply(Fn.LT, 0.0, product), slope, 0.0)
        cut, precision = tile.cast(slope, own.spec.dtype), own.schedule.precision
        return [tile.dot(cut, q, own.rows, x, precision) for q, x in zip(own.queries, sums, strict=True)]
    if own.spec.head_weights is not None:
        slope = tile.apply(Fn.WHERE, tile.apply(Fn.LT, 0.0, product), slope, 0.0)
    wide = [tile.cast(q, "float32") for q in own.queries]
    if own.rows is not None:
        wide = [tile.reduce("sum", q, own.rows) for q in wide]
    return [add(x, mul(slope, q)) for q, x in zip(wide, sums, strict=True)]


def default(spec: DenseGradKeys, target: str) -> Schedule:
    """Eight shares of the queries."""
    triton = target.startswith("triton")
    block = 32 if spec.index.dtype == "float32" else 64
    if not triton:
        return Schedule(block=16, splits=2, lanes=("n", "f"), split_dims=False)
    return Schedule(block=block, splits=8, warps=4, stages=1)


def space(spec: DenseGradKeys, target: str) -> dict[str, tuple[object, ...]]:
    """Keys of a tile, shares of the queries and warps."""
    if not target.startswith("triton"):
        return {"block": (8, 16, 32)}
    return {"block": (16, 32, 64), "splits": (1, 4, 8, 16), "warps": (2, 4, 8)}
