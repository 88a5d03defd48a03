"""One list for all queries: a score per unit, the best over queries and summaries, then the best units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.pieces import Span, dot_over, spans
from sparsec.lower.scalars import add, both, ceil_div, most, mul
from sparsec.lower.select.candidates import split
from sparsec.plan.selection.shared_specs import Members, SetSelector
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import EMPTY_KEY, Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule, ScheduleError

UNITS = 128
"""Units that are ranked or looked up together."""


def lower(spec: SetSelector, schedule: Schedule) -> Lowered:
    """Scores of the units, then the list."""
    if schedule.split_dims and (schedule.rows < 16 or schedule.rows & (schedule.rows - 1)):
        raise ScheduleError(f"{schedule.rows} queries do not fill tensor-core tiles: powers of two from 16 on do")
    narrow = Schedule(warps=4, stages=1, lanes=("n",), split_dims=schedule.split_dims)
    steps = (Step(_score(spec, schedule), schedule), Step(_choose(spec), narrow))
    return Lowered(steps, (as_scratch(_scores(spec)),))


def _scores(spec: SetSelector) -> Tensor:
    return Tensor(f"{spec.name}_scores", "float32", ("B", spec.block_length))


def _params(spec: SetSelector) -> list[tuple[str, str]]:
    names = dict.fromkeys(["B", "TQ", "TK", "q_offset", spec.key_length, spec.block_length])
    return [(name, "int32") for name in names]


@dataclass(frozen=True, slots=True)
class Pairs:
    """A tile of queries and the summaries of one unit."""

    spec: SetSelector
    schedule: Schedule
    q: Tensor
    keys: Tensor
    batch: Node
    rows: Axis
    held: Axis
    dims: list[Span]
    number: Node


def _score(spec: SetSelector, schedule: Schedule) -> Program:
    """The kernel of one (unit, batch) per grid point: a walk over all queries."""
    with tile.Builder() as builder:
        rows = builder.axis("m", schedule.rows)
        padded = max(16, 1 << (spec.pool - 1).bit_length()) if schedule.split_dims else spec.pool
        held, dims = builder.axis("n", padded), spans(builder, "d", spec.dim, schedule)
        q = Tensor(spec.q, spec.dtype, ("B", "TQ", spec.heads, spec.dim))
        keys = Tensor(spec.keys, spec.key_dtype, ("B", spec.key_length, spec.kv_heads, spec.dim))
        unit, batch = tile.program_id(0), tile.program_id(1)
        number = add(mul(unit, spec.pool), tile.iota(held))
        p = Pairs(spec, schedule, q, keys, batch, rows, held, dims, number)
        there = both(
            tile.apply(Fn.LT, number, tile.param(spec.key_length)), tile.apply(Fn.LT, tile.iota(held), spec.pool)
        )

        def visit(at: Node, best: Node) -> Sequence[Node]:
            query = add(mul(at, schedule.rows), tile.iota(rows))
            shown = both(tile.apply(Fn.LT, query, tile.param("TQ")), there)
            found = tile.apply(Fn.WHERE, shown, _over_heads(p, query), -math.inf)
            return [most(best, tile.reduce("max", tile.reduce("max", found, held), rows))]

        tiles = ceil_div(tile.param("TQ"), schedule.rows)
        (best,) = tile.loop(0, tiles, 1, [tile.const(-math.inf)], visit, schedule.stages)
        tile.store(_scores(spec), batch, unit, value=best)
        grid = (tile.param(spec.block_length), tile.param("B"))
        return builder.program(f"{spec.name}_score", [q, keys, _scores(spec)], _params(spec), grid)


def _over_heads(p: Pairs, query: Node) -> Node:
    """The scores of all pairs, reduced over the heads."""
    spec = p.spec

    def visit(head: Node, total: Node) -> Sequence[Node]:
        return [(most if spec.group == "max" else add)(total, _pairs(p, query, head))]

    start = tile.full(-math.inf if spec.group == "max" else 0.0, p.rows, p.held)
    (total,) = tile.loop(0, spec.heads, 1, [start], visit)
    return mul(total, spec.scale / (spec.heads if spec.group == "mean" else 1))


def _pairs(p: Pairs, query: Node, head: Node) -> Node:
    """Products, or cosines, of one head."""
    spec = p.spec
    shared = tile.apply(Fn.TRUNCDIV, head, spec.heads // spec.kv_heads)
    queries = [tile.load(p.q, p.batch, query, head, d.index(), bounds={1: tile.param("TQ")}) for d in p.dims]
    bounds: dict[int, tile.Value] = {1: tile.param(spec.key_length)}
    keys = [tile.load(p.keys, p.batch, p.number, shared, d.index(), bounds=dict(bounds)) for d in p.dims]
    parts = [keys] if spec.key_dtype == spec.dtype else split(keys, spec.dtype)
    products = []
    for part in parts:
        found = dict(zip(p.dims, part, strict=True))
        products.append(dot_over(p.dims, queries, found.__getitem__, p.schedule.precision))
    product = reduce(add, products)
    if not spec.cosine:
        return product
    length = mul(_length(p, queries), _length(p, keys))
    some = tile.apply(Fn.LT, 0.0, length)
    return tile.apply(Fn.DIV, product, tile.apply(Fn.WHERE, some, length, 1.0))


def _length(p: Pairs, rows: Sequence[Node]) -> Node:
    wide = [tile.cast(x, "float32") for x in rows]
    squares = [tile.reduce("sum", mul(x, x), d.axis) for x, d in zip(wide, p.dims, strict=True)]
    return tile.apply(Fn.SQRT, reduce(add, squares))


def _choose(spec: SetSelector) -> Program:
    """The kernel of one batch per grid point."""
    with tile.Builder() as builder:
        units, slots = builder.axis("n", UNITS), builder.axis("k", 1 << (spec.k - 1).bit_length())
        batch, limit = tile.program_id(0), tile.param(spec.block_length)

        def visit(at: Node, kept: Node) -> Sequence[Node]:
            unit = add(mul(at, UNITS), tile.iota(units))
            score = tile.load(_scores(spec), batch, unit, bounds={1: limit})
            rank = tile.apply(Fn.WHERE, tile.apply(Fn.LT, unit, limit), tile.apply(Fn.RANK, score, unit), EMPTY_KEY)
            return [tile.top_insert(kept, rank, slots, units)]

        (best,) = tile.loop(0, ceil_div(limit, UNITS), 1, [tile.full(EMPTY_KEY, slots, dtype="int64")], visit)
        indices = Tensor(spec.indices, "int32", ("B", 1, 1, spec.k))
        place = (batch, tile.const(0), tile.const(0), tile.iota(slots))
        tile.store(indices, *place, value=tile.apply(Fn.RANK_ID, best), bounds={3: spec.k})
        return builder.program(spec.name, [_scores(spec), indices], _params(spec), (tile.param("B"),))


def lower_members(spec: Members, schedule: Schedule) -> Program:
    """The kernel of one (some units, batch) per grid point."""
    with tile.Builder() as builder:
        units, slots = builder.axis("n", UNITS), builder.axis("k", 1 << (spec.k - 1).bit_length())
        batch, unit = tile.program_id(1), add(mul(tile.program_id(0), UNITS), tile.iota(units))
        indices = Tensor(spec.indices, "int32", ("B", 1, 1, spec.k))
        members = Tensor(spec.members, "int32", ("B", spec.length))
        place = (batch, tile.const(0), tile.const(0), tile.iota(slots))
        ids = tile.load(indices, *place, bounds={3: spec.k}, other=-1)
        same = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, unit, ids), 1, 0)
        found = tile.reduce("max", same, slots)
        tile.store(members, batch, unit, value=found, bounds={1: tile.param(spec.length)})
        params = [(name, "int32") for name in dict.fromkeys(["B", "TQ", "TK", "q_offset", spec.length])]
        grid = (ceil_div(tile.param(spec.length), UNITS), tile.param("B"))
        return builder.program(spec.name, [indices, members], params, grid)


def default(spec: SetSelector, target: str) -> Schedule:
    """64 queries at a time."""
    if not target.startswith("triton"):
        return Schedule(rows=8, lanes=("n", "d"), split_dims=False)
    return Schedule(rows=32 if spec.dtype == "float32" else 64, warps=4, stages=2)


def default_members(spec: Members, target: str) -> Schedule:
    """The kernel only moves memory."""
    return Schedule(warps=4, stages=1, lanes=("n",), split_dims=target.startswith("triton"))


def space(spec: SetSelector, target: str) -> dict[str, tuple[object, ...]]:
    """Queries of a tile, warps and stages."""
    if not target.startswith("triton"):
        return {"rows": (4, 8, 16)}
    return {"rows": (16, 32, 64, 128), "warps": (2, 4, 8), "stages": (1, 2)}
