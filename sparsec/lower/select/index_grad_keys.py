"""Gradients of the keys that an index scored for lists, key-outer: a program walks the queries that chose its unit.

The inverse of the lists (``sparsec.lower.inverse.index``) finds them, cut into shares. Rows of a product are choices,
each with the index heads of its list, for all of which the gradients of its scores are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsec.lower.inverse import index as inverse
from sparsec.lower.inverse import shares
from sparsec.lower.inverse.index import Inverse, as_scratch
from sparsec.lower.inverse.shares import Share
from sparsec.lower.inverse.turned import turned
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.pieces import Span, dot_over, spans
from sparsec.lower.scalars import add, both, ceil_div, least, most, mul
from sparsec.lower.select import index_rows
from sparsec.lower.select.candidates import split
from sparsec.lower.select.frame import sharing
from sparsec.plan.selection.signal_specs import IndexGradKeys
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.walk import substitute
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule, ScheduleError


def lower(spec: IndexGradKeys, schedule: Schedule) -> Lowered:
    """scores_grad ``[B,TQ,HS,slots * columns]``, q ``[B,TQ,H,D]`` -> grad_keys ``[B,N,HKV,D]``.

    Inside this kernel the keys are its tokens: TK counts them.
    """
    _check(spec, schedule)
    wide = replace(schedule, warps=4, stages=1)
    index = turned(_lists(spec), schedule, wide, schedule.rows // sharing(spec.index))
    steps = (*index.steps, Step(_walk(spec, schedule), schedule), Step(_sum(spec, schedule), wide))
    params = (("TK", var(spec.index.key_length)), *_over(spec, index.params))
    scratch = (*index.scratch, as_scratch(_parts(spec, schedule)))
    return Lowered(steps, scratch, params, _over(spec, index.limits))


def _check(spec: IndexGradKeys, schedule: Schedule) -> None:
    rows, block, share = schedule.rows, schedule.block, sharing(spec.index)
    if schedule.split_dims and (rows < 16 or block < 16 or rows & (rows - 1) or block & (block - 1)):
        raise ScheduleError(f"{rows} rows x {block} keys do not fill tensor-core tiles: powers of two from 16 on do")
    if rows < share:
        raise ScheduleError(f"{rows} rows do not hold the {share} heads that share a list")


def _over(spec: IndexGradKeys, params: Sequence[tuple[str, Expr]]) -> tuple[tuple[str, Expr], ...]:
    return tuple((name, substitute(value, {"TK": var(spec.index.key_length)})) for name, value in params)


def _lists(spec: IndexGradKeys) -> GatheredAttention:
    """The lists as those of attention over chunks of so many keys, for the inverse."""
    own = spec.index
    alone = own.group is None and own.head_weights is None and own.heads > own.kv_heads
    return GatheredAttention(
        spec.name, own.q, own.keys, own.keys, own.indices, None, spec.grad_keys, None, "head" if alone else "kv_head",
        own.slots, spec.columns, own.heads, own.kv_heads, own.dim, own.dim, own.scale, own.dtype,
    )  # fmt: skip


def _out(spec: IndexGradKeys) -> Tensor:
    return Tensor(spec.grad_keys, spec.out_dtype, ("B", "TK", spec.index.kv_heads, spec.index.dim))


def _tiles(spec: IndexGradKeys, schedule: Schedule) -> int:
    """Tiles of keys of a unit."""
    return -(-spec.columns // schedule.block)


def _parts(spec: IndexGradKeys, schedule: Schedule) -> Tensor:
    """Partial sums ``[B, HKV, XT, keys, D]`` of units that were cut into shares."""
    keys = _tiles(spec, schedule) * schedule.block
    return Tensor(f"{spec.name}_parts", "float32", ("B", spec.index.kv_heads, "XT", keys, spec.index.dim))


@dataclass(frozen=True, slots=True)
class Unit:
    """One tile of keys of the unit of a share.

    Attributes:
        at: batch, and key/value head.
        local: the keys' numbers within the unit.
    """

    spec: IndexGradKeys
    schedule: Schedule
    at: tuple[Node, Node]
    share: Share
    keys: Axis
    local: Node
    dims: list[Span]

    @property
    def key(self) -> Node:
        """The keys; those past the unit's last belong to the next one."""
        return add(mul(most(self.share.chunk, 0), self.spec.columns), self.local)

    @property
    def limit(self) -> Node:
        """The end of the unit's keys; 0 where there is no unit."""
        end = least(mul(add(self.share.chunk, 1), self.spec.columns), tile.param("TK"))
        return tile.apply(Fn.WHERE, tile.apply(Fn.LE, 0, self.share.chunk), end, 0)

    def store(self, there: Node, totals: Sequence[Node]) -> None:
        """Round and keep the gradients where ``there`` holds."""
        bounds: dict[int, tile.Value] = {1: tile.apply(Fn.WHERE, there, self.limit, 0)}
        for d, total in zip(self.dims, totals, strict=True):
            place = (self.at[0], self.key, self.at[1], d.index())
            tile.store(_out(self.spec), *place, value=tile.cast(total, self.spec.out_dtype), bounds=dict(bounds))


def _unit(builder: tile.Builder, spec: IndexGradKeys, schedule: Schedule, found: Inverse) -> Unit:
    at, tiles = (tile.program_id(2), tile.program_id(1)), _tiles(spec, schedule)
    listed = shares.buffer(_lists(spec), found)
    share, part = shares.read_part(listed, at, tiles)
    keys = builder.axis("n", schedule.block)
    local = add(mul(part, schedule.block), tile.iota(keys))
    return Unit(spec, schedule, at, share, keys, local, spans(builder, "d", spec.index.dim, schedule))


def _program(builder: tile.Builder, u: Unit, name: str, tensors: Sequence[Tensor]) -> Program:
    grid = (mul(tile.param("WT"), _tiles(u.spec, u.schedule)), tile.const(u.spec.index.kv_heads), tile.param("B"))
    return builder.program(name, list(tensors), [(n, "int32") for n in (*shares.PARAMS, "ET")], grid)


def _walk(spec: IndexGradKeys, schedule: Schedule) -> Program:
    """The kernel of one (share and tile of keys, key/value head, batch) per grid point."""
    with tile.Builder() as builder:
        found = inverse.inverse(_lists(spec), schedule, complete=True)
        u = _unit(builder, spec, schedule, found)
        rows, step = builder.axis("m", schedule.rows), schedule.rows // sharing(spec.index)
        sources = _sources(spec)

        def visit(n: Node, *sums: Node) -> Sequence[Node]:
            return _step(u, found, sources, rows, n, sums)

        inits = [tile.full(0.0, u.keys, d.axis) for d in u.dims]
        sums = tile.loop(0, ceil_div(u.share.count, step), 1, inits, visit, schedule.stages)
        whole, parts = tile.apply(Fn.LT, u.share.place, 0), _parts(spec, schedule)
        kept: dict[int, tile.Value] = {3: tile.apply(Fn.WHERE, whole, 0, _tiles(spec, schedule) * schedule.block)}
        for d, total in zip(u.dims, sums, strict=True):
            place = (*u.at, most(u.share.place, 0), u.local, d.index())
            tile.store(parts, *place, value=total, bounds=dict(kept))
        u.store(whole, sums)
        listed = shares.buffer(_lists(spec), found)
        read = [t for t in sources.values() if spec.index.head_weights is not None or t.name != spec.index.keys]
        return _program(builder, u, spec.name, [*read, found.entries, listed, _out(spec), parts])


def _sources(spec: IndexGradKeys) -> dict[str, Tensor]:
    """What is read: queries, keys, head weights, gradients of scores; keys count as tokens here."""
    own = replace(spec.index, key_length="TK")
    grads = index_rows.listed(own, spec.columns, spec.scores_grad)
    return {t.name: t for t in (*index_rows.tensors(own), grads)}


def _step(u: Unit, found: Inverse, sources: dict[str, Tensor], rows: Axis, n: Node, sums: Sequence[Node]) -> list[Node]:
    """Add a tile of choices, each with the heads of its list."""
    own, share, row = u.spec.index, sharing(u.spec.index), tile.iota(rows)
    step, lane = u.schedule.rows // share, tile.apply(Fn.TRUNCDIV, row, share)
    entry = add(mul(n, step), lane)
    there = tile.apply(Fn.LT, entry, u.share.count)
    if step * share < u.schedule.rows:
        there = both(there, tile.apply(Fn.LT, lane, step))
    place = tile.apply(Fn.WHERE, there, add(u.share.first, entry), tile.param("ET"))
    choice = tile.load(found.entries, *u.at, place, bounds={2: tile.param("ET")})
    token = tile.apply(Fn.WHERE, there, tile.apply(Fn.TRUNCDIV, choice, found.per_token), tile.param("TQ"))
    slot, local = tile.apply(Fn.TRUNCMOD, choice, own.slots), tile.apply(Fn.TRUNCMOD, row, share)
    listed: Node = u.at[1]
    if found.lists > 1:
        local = tile.apply(Fn.TRUNCMOD, tile.apply(Fn.TRUNCDIV, choice, own.slots), found.lists)
        listed = add(mul(u.at[1], found.lists), local)
    head = add(mul(u.at[1], own.heads // own.kv_heads), local)
    return _add(u, sources, rows, (token, head, listed, slot), sums)


def _add(
    u: Unit, sources: dict[str, Tensor], rows: Axis, at: tuple[Node, Node, Node, Node], sums: Sequence[Node]
) -> list[Node]:
    own, (token, head, listed, slot) = u.spec.index, at
    bounds: dict[int, tile.Value] = {1: tile.param("TQ")}
    queries = [tile.load(sources[own.q], u.at[0], token, head, d.index(), bounds=dict(bounds)) for d in u.dims]
    column = add(mul(slot, u.spec.columns), u.local)
    inside = tile.apply(Fn.LT, u.local, u.spec.columns)
    column = tile.apply(Fn.WHERE, inside, column, own.slots * u.spec.columns)
    limits: dict[int, tile.Value] = {**bounds, 3: own.slots * u.spec.columns}
    slope = tile.load(sources[u.spec.scores_grad], u.at[0], token, listed, column, bounds=limits)
    weight: Node | float = own.scale / (sharing(own) if own.group == "mean" else 1)
    if own.head_weights is not None:
        weight = mul(
            tile.cast(tile.load(sources[own.head_weights], u.at[0], token, head, bounds=dict(bounds)), "float32"),
            weight,
        )
        seen = tile.apply(Fn.LT, 0.0, _products(u, sources[own.keys], queries))
        slope = tile.apply(Fn.WHERE, seen, slope, 0.0)
    slope = mul(slope, weight)
    for part in [slope] if own.dtype == "float32" else [x for (x,) in split([slope], own.dtype)[-2:]]:
        sums = [tile.dot(part, q, rows, x, u.schedule.precision) for q, x in zip(queries, sums, strict=True)]
    return list(sums)


def _products(u: Unit, keys: Tensor, queries: Sequence[Node]) -> Node:
    """q . key of every row and key."""
    own, bounds = u.spec.index, {1: tile.param("TK")}
    place = (u.at[0], u.key, u.at[1]) if own.batched else (u.key, u.at[1])
    limits: dict[int, tile.Value] = {int(own.batched): bounds[1]}
    read = [tile.load(keys, *place, d.index(), bounds=dict(limits)) for d in u.dims]
    total: Node | None = None
    for part in [read] if keys.dtype == own.dtype else split(read, own.dtype):
        found = dict(zip(u.dims, part, strict=True))
        total = dot_over(u.dims, list(queries), found.__getitem__, u.schedule.precision, total)
    assert total is not None
    return total


def _sum(spec: IndexGradKeys, schedule: Schedule) -> Program:
    """First shares add the partial sums of their unit."""
    with tile.Builder() as builder:
        found = inverse.inverse(_lists(spec), schedule, complete=True)
        u, parts = _unit(builder, spec, schedule, found), _parts(spec, schedule)

        def visit(n: Node, *sums: Node) -> Sequence[Node]:
            read = (tile.load(parts, *u.at, add(u.share.place, n), u.local, d.index()) for d in u.dims)
            return [add(x, y) for x, y in zip(sums, read, strict=True)]

        inits = [tile.full(0.0, u.keys, d.axis) for d in u.dims]
        sums = tile.loop(0, u.share.pieces, 1, inits, visit)
        u.store(tile.apply(Fn.LT, 0, u.share.pieces), sums)
        return _program(builder, u, f"{spec.name}_sum", [shares.buffer(_lists(spec), found), parts, _out(spec)])


def default(spec: IndexGradKeys, target: str) -> Schedule:
    """Rows for at least the heads of a list, and a unit's keys up to 64 at a time."""
    share = sharing(spec.index)
    if not target.startswith("triton"):
        return Schedule(
            rows=share * max(1, 16 // share), block=min(spec.columns, 64), lanes=("d", "n"), split_dims=False
        )
    block = min(64, max(16, 1 << (spec.columns - 1).bit_length()))
    rows = max(32, 1 << (share - 1).bit_length())
    return Schedule(rows=rows, block=min(block, 32) if spec.index.dtype == "float32" else block, warps=4, stages=2)


def space(spec: IndexGradKeys, target: str) -> dict[str, tuple[object, ...]]:
    """Rows, warps and stages."""
    share = sharing(spec.index)
    if not target.startswith("triton"):
        return {"rows": tuple(share * max(1, r // share) for r in (8, 16, 32))}
    rows = tuple(r for r in (16, 32, 64, 128) if r >= share) or (default(spec, target).rows,)
    return {"rows": rows, "warps": (2, 4, 8), "stages": (1, 2, 3)}
