"""Gradients of all keys that an index scored, from a dense loss: each program has a tile of keys and walks the queries.

The attention of a query's heads on the tile is computed again; what the shares of the queries give is added up after.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.pieces import spans
from sparsec.lower.scalars import add, ceil_div, least, mul
from sparsec.lower.select import dense_walk, divergence, index_rows
from sparsec.lower.select.dense_walk import Keys
from sparsec.plan.selection.signal_specs import DenseGradKeys
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: DenseGradKeys, schedule: Schedule) -> Lowered:
    """grad ``[B,TQ,HS]`` -> grad_keys ``[B,N,HKV,D]``, by the sums of ``schedule.splits`` shares of the queries."""
    parts = _parts(spec, schedule)
    steps = (Step(_walk(spec, schedule, parts), schedule), Step(_sum(spec, schedule, parts), schedule))
    return Lowered(steps, (as_scratch(parts),))


def _parts(spec: DenseGradKeys, schedule: Schedule) -> Tensor:
    own = spec.index
    shape = ("B", own.kv_heads, schedule.splits, own.key_length, own.dim)
    return Tensor(f"{spec.name}_parts", "float32", shape)


def _params(spec: DenseGradKeys) -> list[tuple[str, str]]:
    names = dict.fromkeys(["B", "TQ", "TK", "q_offset", spec.index.key_length, spec.index.block_length])
    return [(name, "int32") for name in names]


def _walk(spec: DenseGradKeys, schedule: Schedule, parts: Tensor) -> Program:
    """The kernel of one (tile of keys and share of the queries, key head, batch) per grid point."""
    own, splits, loss = spec.index, schedule.splits, spec.loss
    assert loss.dense is not None
    lists, number = index_rows.lists(own) // own.kv_heads, tile_number
    with tile.Builder() as builder:
        first = mul(tile.program_id(1), lists)
        c = dense_walk.keys(builder, loss.dense, own, schedule, first)
        at, part = number(splits)
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
        return builder.program(spec.name, tensors, _params(spec), (*grid, tile.param("B")))


def tile_number(splits: int) -> tuple[Node, Node]:
    """The tile of keys and the share of the queries of a program."""
    number = tile.program_id(0)
    return tile.apply(Fn.TRUNCDIV, number, splits), tile.apply(Fn.TRUNCMOD, number, splits)


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


def _sum(spec: DenseGradKeys, schedule: Schedule, parts: Tensor) -> Program:
    """The shares of a tile of keys, added up and rounded."""
    own = spec.index
    with tile.Builder() as builder:
        keys, dims = builder.axis("n", schedule.block), spans(builder, "f", own.dim, schedule)
        at = (tile.program_id(2), tile.program_id(1))
        key = add(mul(tile.program_id(0), schedule.block), tile.iota(keys))
        limit = tile.param(own.key_length)
        out = Tensor(spec.grad_keys, spec.out_dtype, ("B", own.key_length, own.kv_heads, own.dim))

        def visit(n: Node, *sums: Node) -> Sequence[Node]:
            read = (tile.load(parts, *at, n, key, d.index(), bounds={3: limit}) for d in dims)
            return [add(x, y) for x, y in zip(sums, read, strict=True)]

        inits = [tile.full(0.0, keys, d.axis) for d in dims]
        for d, total in zip(dims, tile.loop(0, schedule.splits, 1, inits, visit), strict=True):
            value = tile.cast(total, spec.out_dtype)
            tile.store(out, at[0], key, at[1], d.index(), value=value, bounds={1: limit})
        grid = (ceil_div(limit, schedule.block), tile.const(own.kv_heads), tile.param("B"))
        return builder.program(f"{spec.name}_sum", [parts, out], _params(spec), grid)


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
