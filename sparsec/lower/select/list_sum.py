"""Attention over lists summed over the heads that share a list: a column's mass, or the slope of its factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsec.lower import softmax
from sparsec.lower.gathered import chunks
from sparsec.lower.gathered.chunks import Frame
from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.pieces import dot_over
from sparsec.lower.rows import one_token
from sparsec.lower.scalars import add, both, most, mul, sub
from sparsec.plan.selection.signal_specs import ListSum
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule, ScheduleError


@dataclass(frozen=True, slots=True)
class Sum:
    """One list of one token.

    Attributes:
        units: the groups of heads that share it.
    """

    spec: ListSum
    f: Frame
    listed: Node
    units: int
    tensors: dict[str, Tensor]


def lower(spec: ListSum, schedule: Schedule) -> Lowered:
    """One (token, list, batch) per grid point; for slopes, first the sums of p * dp of one (token, unit of heads)."""
    check(spec, schedule)
    spec = replace(spec, forward=replace(spec.forward, sink=None))  # it is in the log-sum-exp
    main = Step(_columns(spec, schedule), schedule)
    if spec.kind == "mass":
        return Lowered((main,))
    return Lowered((Step(_deltas(spec, schedule), schedule), main), (as_scratch(_delta(spec)),))


def _columns(spec: ListSum, schedule: Schedule) -> Program:
    with tile.Builder() as builder:
        s = _begin(builder, spec, schedule, None)
        if spec.columns == spec.forward.chunk:
            _each_key(s)
        else:
            _each_unit(s)
        grid = (tile.param("TQ"), tile.const(chunks.lists(spec.forward)), tile.param("B"))
        out = _columns_of(spec)
        left = {spec.lse_grad} | ({spec.forward.v} - {spec.forward.q, spec.forward.k} if spec.kind == "mass" else set())
        read = [t for name, t in s.tensors.items() if name not in left]
        return _program(builder, spec.name, [*read, out], grid)


def _deltas(spec: ListSum, schedule: Schedule) -> Program:
    """The sum of p * dp over the list of every head, less the gradient of its log-sum-exp."""
    with tile.Builder() as builder:
        s = _begin(builder, spec, schedule, tile.program_id(1))
        f, forward, block = s.f, spec.forward, schedule.block

        def visit(n: Node, total: Node) -> Sequence[Node]:
            key, shown, _ = _listed(s, n)
            p, dp, _ = _pairs(s, f, key, shown)
            assert dp is not None
            return [add(total, tile.reduce("sum", mul(p, dp), f.keys))]

        steps = -(-forward.slots * forward.chunk // block)
        (total,) = tile.loop(0, steps, 1, [tile.full(0.0, f.rows.axis)], visit, schedule.stages)
        place, bounds = f.rows.place(f.batch), dict(f.rows.bounds)
        if spec.lse_grad is not None:
            total = sub(total, tile.load(s.tensors[spec.lse_grad], *place, bounds=dict(bounds)))
        tile.store(_delta(spec), *place, value=total, bounds=bounds)
        grid = (tile.param("TQ"), tile.const(forward.heads // chunks.sharing(forward)), tile.param("B"))
        read = [t for name, t in s.tensors.items() if name != _delta(spec).name]
        return _program(builder, f"{spec.name}_deltas", [*read, _delta(spec)], grid)


def _program(builder: tile.Builder, name: str, tensors: Sequence[Tensor], grid: tuple[Node, Node, Node]) -> Program:
    return builder.program(name, list(tensors), [(n, "int32") for n in chunks.PARAMS], grid)


def _delta(spec: ListSum) -> Tensor:
    return Tensor(f"{spec.name}_delta", "float32", ("B", "TQ", spec.forward.heads))


def _columns_of(spec: ListSum) -> Tensor:
    return Tensor(spec.out, "float32", ("B", "TQ", chunks.lists(spec.forward), spec.forward.slots * spec.columns))


def check(spec: ListSum, schedule: Schedule) -> None:
    """Refuse a schedule that cannot carry this spec out."""
    rows, block = schedule.rows, schedule.block
    if schedule.split_dims and (rows < 16 or block < 16 or rows & (rows - 1) or block & (block - 1)):
        raise ScheduleError(f"{rows} rows x {block} keys do not fill tensor-core tiles: powers of two from 16 on do")
    if rows < chunks.sharing(spec.forward):
        raise ScheduleError(f"{rows} rows do not hold the {chunks.sharing(spec.forward)} heads that share a list")


def _begin(builder: tile.Builder, spec: ListSum, schedule: Schedule, unit: Node | None) -> Sum:
    """The frame of a list's first unit of heads, or of the unit of that number."""
    forward, token = spec.forward, tile.program_id(0)
    share, shared = chunks.sharing(forward), forward.scope == "token"
    first = unit if unit is not None else tile.const(0) if shared else tile.program_id(1)
    at = chunks.unit(forward, first)
    rows = one_token(builder.axis("m", schedule.rows), token, at.head, _limit(schedule, at.head, share))
    f = chunks.frame(builder, forward, schedule, rows, tile.program_id(2), at, 0)
    found = {name: t for name, t in f.tensors.items() if name != forward.out}
    if spec.grad is not None:
        wide: tuple[int | str, ...] = ("B", "TQ", forward.heads, forward.value_dim)
        found[spec.grad] = Tensor(spec.grad, spec.grad_dtype, wide)
        found[_delta(spec).name] = _delta(spec)
        if spec.lse_grad is not None:
            found[spec.lse_grad] = Tensor(spec.lse_grad, "float32", wide[:3])
    return Sum(spec, f, at.listed, forward.kv_heads if shared and unit is None else 1, found)


def _limit(schedule: Schedule, head: Node, share: int) -> Node | None:
    return add(head, share) if share % schedule.rows else None


def _listed(s: Sum, n: Node) -> tuple[Node, Node, Node]:
    """The keys of tile ``n`` of a list's keys, which of them there are, and their columns."""
    chunk = s.spec.forward.chunk
    column = add(mul(n, s.f.schedule.block), tile.iota(s.f.keys))
    slot = tile.apply(Fn.TRUNCDIV, column, chunk)
    place = (s.f.batch, s.f.rows.token, s.listed, slot)
    ids = tile.load(s.tensors[s.spec.forward.indices], *place, bounds={3: s.spec.forward.slots}, other=-1)
    local = tile.apply(Fn.TRUNCMOD, column, chunk) if chunk > 1 else tile.const(0)
    return add(mul(most(ids, 0), chunk), local), tile.apply(Fn.LE, 0, ids), column


def _each_key(s: Sum) -> None:
    """A number per key: tiles of keys run through the list, several chunks at a time where they are small."""
    width = s.spec.forward.slots * s.spec.columns

    def visit(n: Node) -> Sequence[Node]:
        key, shown, column = _listed(s, n)
        total, seen = over_units(s, key, shown)
        if s.spec.kind == "mass":
            total = tile.apply(Fn.WHERE, tile.apply(Fn.LT, 0, seen), total, -1.0)
        place = (s.f.batch, s.f.rows.token, s.listed, column)
        tile.store(_columns_of(s.spec), *place, value=total, bounds={3: width})
        return []

    tile.loop(0, -(-width // s.f.schedule.block), 1, [], visit, s.f.schedule.stages)


def _each_unit(s: Sum) -> None:
    """A number per chosen chunk: the sum over its keys."""
    forward, block = s.spec.forward, s.f.schedule.block

    def unit(slot: Node) -> Sequence[Node]:
        place = (s.f.batch, s.f.rows.token, s.listed, slot)
        chunk = tile.load(s.tensors[forward.indices], *place)

        def part(n: Node, total: Node, seen: Node) -> Sequence[Node]:
            local = add(mul(n, block), tile.iota(s.f.keys))
            shown = both(tile.apply(Fn.LT, local, forward.chunk), tile.apply(Fn.LE, 0, chunk))
            found, there = over_units(s, add(mul(most(chunk, 0), forward.chunk), local), shown)
            return [add(total, tile.reduce("sum", found, s.f.keys)), most(seen, tile.reduce("max", there, s.f.keys))]

        parts = -(-forward.chunk // block)
        total, seen = tile.loop(0, parts, 1, [tile.const(0.0), tile.const(0)], part)
        if s.spec.kind == "mass":
            total = tile.apply(Fn.WHERE, tile.apply(Fn.LT, 0, seen), total, -1.0)
        tile.store(_columns_of(s.spec), *place, value=total)
        return []

    tile.loop(0, forward.slots, 1, [], unit)


def over_units(s: Sum, key: Node, shown: Node) -> tuple[Node, Node]:
    """The sum over all heads of the list ``[n]``, and 1 where a head sees the key."""
    if s.units == 1:
        return _unit(s, s.f, key, shown)

    def visit(n: Node, total: Node, seen: Node) -> Sequence[Node]:
        found, there = _unit(s, frame(s, n), key, shown)
        return [add(total, found), most(seen, there)]

    inits = [tile.full(0.0, s.f.keys), tile.full(0, s.f.keys, dtype="int32")]
    total, seen = tile.loop(0, s.units, 1, inits, visit)
    return total, seen


def frame(s: Sum, unit: Node) -> Frame:
    """The frame of another group of heads."""
    f, forward = s.f, s.spec.forward
    at = chunks.unit(forward, unit)
    share = chunks.sharing(forward)
    limit = add(at.head, share) if share % f.rows.axis.size else None
    rows = one_token(f.rows.axis, f.rows.token, at.head, limit)
    queries = [tile.load(s.tensors[forward.q], *rows.place(f.batch, d.index()), bounds=rows.bounds) for d in f.dims]
    return replace(f, rows=rows, key_head=at.key_head, queries=queries, env={**f.env, "h": rows.head})


def _unit(s: Sum, f: Frame, key: Node, shown: Node) -> tuple[Node, Node]:
    """The sum over the heads of a frame, and 1 where one of them sees the key."""
    p, dp, scores = _pairs(s, f, key, shown)
    if dp is not None:
        delta = tile.load(s.tensors[_delta(s.spec).name], *f.rows.place(f.batch), bounds=dict(f.rows.bounds))
        p = mul(p, sub(dp, delta))
    there = tile.apply(Fn.WHERE, tile.apply(Fn.LT, softmax.NOTHING, scores), 1, 0)
    return tile.reduce("sum", p, f.rows.axis), tile.reduce("max", there, f.rows.axis)


def _pairs(s: Sum, f: Frame, key: Node, shown: Node) -> tuple[Node, Node | None, Node]:
    """p, for slopes dp, and the masked scores of some keys; rows that are no heads weigh nothing."""
    scores, scale = chunks.logits(f, key)
    scores = chunks.hide(scores, both(chunks.visible(f, key), shown), None)
    assert f.spec.lse is not None, "a common softmax has a log-sum-exp"
    place, bounds = f.rows.place(f.batch), dict(f.rows.bounds)
    lse = tile.load(s.tensors[f.spec.lse], *place, bounds=dict(bounds), other=-math.inf)
    none = tile.apply(Fn.LE, lse, -math.inf)
    height = tile.apply(Fn.WHERE, none, -softmax.HIDDEN, mul(lse, softmax.LOG2E))
    p = tile.apply(Fn.EXP2, sub(mul(scores, scale), height))
    if s.spec.grad is None:
        return p, None, scores
    grad = s.tensors[s.spec.grad]
    read = [tile.cast(tile.load(grad, *place, e.index(), bounds=dict(bounds)), f.spec.dtype) for e in f.values]
    return p, dot_over(f.values, read, chunks.value_reader(f, key), f.schedule.precision), scores


def row_tile(forward: GatheredAttention, schedule: Schedule) -> int:
    """Rows that hold the heads that share a list."""
    return _rows(forward) if schedule.split_dims else chunks.sharing(forward)


def _rows(forward: GatheredAttention) -> int:
    return max(16, 1 << (chunks.sharing(forward) - 1).bit_length())


def default(spec: ListSum, target: str) -> Schedule:
    """All heads that share a list, and 64 keys at a time or a chunk's."""
    forward = spec.forward
    if not target.startswith("triton"):
        block = 16 if spec.columns == forward.chunk else forward.chunk
        return Schedule(rows=chunks.sharing(forward), block=block, lanes=("n", "d"), split_dims=False)
    block = 64 if spec.columns == forward.chunk else min(64, max(16, 1 << (forward.chunk - 1).bit_length()))
    wide = forward.dtype == "float32" or max(forward.head_dim, forward.value_dim) > 128
    return Schedule(rows=_rows(forward), block=min(block, 32) if wide else block, warps=4, stages=2)


def space(spec: ListSum, target: str) -> dict[str, tuple[object, ...]]:
    """Keys of a tile, warps and stages."""
    if not target.startswith("triton"):
        return {"block": (8, 16, 32)} if spec.columns == spec.forward.chunk else {}
    return {"block": (16, 32, 64, 128), "warps": (2, 4, 8), "stages": (1, 2, 3)}
