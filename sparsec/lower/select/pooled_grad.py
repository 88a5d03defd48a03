"""Back from chosen scores through pools, the group and a softmax to queries and keys; scores are worked out again.

One program per (tile of tokens, head, batch) walks all summaries that the tokens see: for the softmax's log-sum-exps,
for the sums of p dP, and for the queries' gradients. One per (tile of summaries, share of the tokens, key head, batch)
walks the tokens with those sums at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sparsec.lower import softmax
from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Scratch, Step
from sparsec.lower.pieces import Span
from sparsec.lower.ranges import tile_ranges
from sparsec.lower.scalars import add, ceil_div, least, mul, sub
from sparsec.lower.select import key_shares, lead, winners
from sparsec.lower.select.candidates import as_keys, log_sum, log_sum_of, products, query, shown
from sparsec.lower.select.frame import Frame, alone, frame, params, sharing
from sparsec.lower.select.key_shares import KeyShares
from sparsec.lower.select.spread import spread
from sparsec.lower.select.unit import through, unit
from sparsec.plan.selection.pooled_specs import PooledGrad
from sparsec.plan.specs import Piece, Selector
from sparsec.scalar.expr import constant, var
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule, ScheduleError


def lower(spec: PooledGrad, schedule: Schedule) -> Lowered:
    """scores_grad ``[B,TQ,HS,K]`` -> grad_q ``[B,TQ,H,D]`` and grad_keys ``[B,N,HKV,D]``, those that are asked for."""
    check(spec, schedule)
    steps, scratch = list[Step](), list[Scratch]()
    if spec.forward.pool is not None and spec.forward.pool.kind == "max":
        own, name = spec.forward, f"{spec.name}_winners"
        found = winners.schedule(schedule)
        steps.append(Step(winners.lower(own, name, found), found))
        scratch.append(winners.scratch(own, name))
        seen = own.visible if own.softmax else None
        spec = replace(spec, forward=replace(own, pool=None, indices=name, visible=seen))
    if spec.grad_q is not None or spec.normalised:
        steps.append(Step(_rows(spec, schedule), schedule))
    if spec.grad_keys is not None:
        if spec.normalised:
            extents = (var("B"), var("TQ"), constant(spec.forward.heads))
            scratch += [Scratch(t.name, extents, "float32") for t in _sums(spec)]
        shares = KeyShares(spec.name, spec.forward, spec.grad_keys, spec.keys_dtype)
        scratch.append(as_scratch(key_shares.parts(shares, schedule)))
        steps.append(Step(_keys(spec, schedule, key_shares.parts(shares, schedule)), schedule))
        steps.append(Step(key_shares.total(shares, schedule), schedule))
    return Lowered(tuple(steps), tuple(scratch))


def check(spec: PooledGrad, schedule: Schedule) -> None:
    """Refuse what has no such gradient, and tiles that do not multiply."""
    own = spec.forward
    if spec.maximum and own.softmax:
        raise ScheduleError("a maximum of probabilities has no gradient here")
    if own.weights == "softmax_all" and (own.softmax or own.pool is not None or own.bias is not None):
        raise ScheduleError("shares of all that is eligible have a gradient where scores are products, and no other")
    rows, block = schedule.rows, schedule.block
    if schedule.split_dims and (rows < 16 or block < 16 or rows & (rows - 1) or block & (block - 1)):
        raise ScheduleError(f"{rows} rows x {block} keys do not fill tensor-core tiles: powers of two from 16 on do")


def _sums(spec: PooledGrad) -> tuple[Tensor, Tensor]:
    """Base-two log-sum-exps, and sums of p dP, of each head: ``[B,TQ,H]`` fp32."""
    shape = ("B", "TQ", spec.forward.heads)
    return Tensor(f"{spec.name}_log_sums", "float32", shape), Tensor(f"{spec.name}_sums", "float32", shape)


@dataclass(frozen=True, slots=True)
class Slope:
    """The gradients of one head's scores, a tile at a time.

    Attributes:
        sums: the head's log-sum-exps and sums of p dP; without a softmax there are none.
    """

    spec: PooledGrad
    f: Frame
    listed: Node
    queries: list[Node]
    sums: tuple[Node, Node] | None

    @property
    def incoming(self) -> Tensor:
        """The gradients of the chosen blocks' scores."""
        own = self.spec.forward
        return Tensor(self.spec.scores_grad, "float32", ("B", "TQ", own.heads // sharing(own), own.slots))

    def pulled(self, number: Node) -> Node:
        """The gradients of probabilities, or of scores without a softmax; the same for all heads of a list."""
        return spread(self.f, number, self.listed, self.incoming)

    def raw(self, number: Node) -> tuple[Node, Node | None]:
        """Scores, and the head's share of their gradients where that is not all."""
        if self.spec.together:
            return lead.shared(self.f, self.spec.forward, number)
        return products(self.f, self.queries, number), None

    def powers(self, number: Node, raw: Node, log_sums: Node) -> Node:
        """Probabilities, 0 for summaries that are not visible."""
        scores = mul(raw, self.f.spec.scale * softmax.LOG2E)
        return tile.apply(Fn.WHERE, shown(self.f, number), tile.apply(Fn.EXP2, sub(scores, log_sums)), 0.0)

    def of(self, number: Node, pulled: Node) -> Node:
        """The gradients of scores, without the scale and the share of a mean."""
        raw, share = self.raw(number) if self.spec.scored else (None, None)
        if self.sums is None:
            slope = tile.apply(Fn.WHERE, shown(self.f, number), pulled, 0.0)
        else:
            assert raw is not None
            slope = mul(self.powers(number, raw, self.sums[0]), sub(pulled, self.sums[1]))
        return slope if share is None else mul(slope, share)


def factor(own: Selector) -> float:
    """What all gradients of scores are multiplied by."""
    return own.scale / (sharing(own) if own.group == "mean" else 1)


def _tensors(s: Slope, written: Sequence[Tensor]) -> list[Tensor]:
    own, held = s.spec.forward, s.f.tensors
    read = [held[own.keys], held[own.indices], s.incoming]
    return [*([held[own.q]] if s.spec.scored or own.cosine or s.spec.grad_keys else []), *read, *written]


def _frame(builder: tile.Builder, spec: PooledGrad, schedule: Schedule) -> Frame:
    """A tile of tokens of one head, whose list is that of its group."""
    own = spec.forward
    visible = own.visible if own.softmax or own.pool is not None else None
    scale = own.scale
    if own.weights == "softmax_all":
        visible, scale = own.eligible, factor(own)
    f = frame(builder, replace(alone(own), visible=visible, scale=scale), schedule)
    listed = Tensor(own.indices, "int32", ("B", "TQ", own.heads // sharing(own), own.slots))
    return replace(f, tensors={**f.tensors, own.indices: listed})


def _listed(own: Selector, head: Node) -> Node:
    return tile.apply(Fn.TRUNCDIV, head, sharing(own)) if sharing(own) > 1 else head


def _rows(spec: PooledGrad, schedule: Schedule) -> Program:
    """The sums of a tile of tokens of one head, and the gradients of their queries."""
    own = spec.forward
    with tile.Builder() as builder:
        f = _frame(builder, spec, schedule)
        s = Slope(spec, f, _listed(own, f.head), query(f, 0) if spec.normalised else [], None)
        written = list[Tensor]()
        if spec.normalised:
            s = replace(s, sums=_found(s))
            if spec.grad_keys is not None:
                written += _kept(s)
        if spec.grad_q is not None:
            written.append(_to_queries(s, spec.grad_q))
        read = [t for t in _tensors(s, written) if spec.scored or own.cosine or t.name != own.q]
        grid = (ceil_div(tile.param("TQ"), schedule.rows), tile.const(own.heads), tile.param("B"))
        return builder.program(spec.name, read, params(own), grid)


def _walk(f: Frame, state: Sequence[Node], body: Callable[..., Sequence[Node]]) -> Sequence[Node]:
    """``state = body(numbers, *state)`` for every tile of summaries that some token sees."""
    own, limit = f.spec, tile.param(f.spec.key_length)
    piece = Piece(own.keys, own.keys, own.key_length, as_keys(own.visible))
    ranges = tile_ranges(piece, f.schedule.block, limit, f.env, f.tensors)

    def visit(at: Node, *carried: Node) -> Sequence[Node]:
        return body(add(mul(at, f.schedule.block), tile.iota(f.keys)), *carried)

    return tile.loop(ranges[0].start, ranges[-1].stop, 1, state, visit, f.schedule.stages)


def _found(s: Slope) -> tuple[Node, Node]:
    """The log-sum-exps of a tile of tokens, and the sums of p dP."""
    sums = log_sum_of(s.f, lambda number, _: s.raw(number)[0]) if s.spec.together else log_sum(s.f, tile.const(0))

    def visit(number: Node, total: Node) -> Sequence[Node]:
        powers = s.powers(number, s.raw(number)[0], sums)
        return [add(total, tile.reduce("sum", mul(powers, s.pulled(number)), s.f.keys))]

    return sums, _walk(s.f, [tile.full(0.0, s.f.rows)], visit)[0]


def _kept(s: Slope) -> list[Tensor]:
    """Leave the sums for the keys."""
    assert s.sums is not None
    for target, value in zip(_sums(s.spec), s.sums, strict=True):
        tile.store(target, s.f.batch, s.f.row, s.f.head, value=value, bounds={1: tile.param("TQ")})
    return list(_sums(s.spec))


def _to_queries(s: Slope, out: str) -> Tensor:
    """Add up the keys by the gradients of their scores."""
    own, f = s.spec.forward, s.f

    def visit(number: Node, *sums: Node) -> Sequence[Node]:
        slope, keys = tile.cast(s.of(number, s.pulled(number)), own.dtype), [_key(f, number, d) for d in f.dims]
        keys = [tile.cast(k, own.dtype) for k in (unit(keys, f.dims) if own.cosine else keys)]
        return [tile.dot(slope, k, f.keys, x, f.schedule.precision) for k, x in zip(keys, sums, strict=True)]

    target = Tensor(out, s.spec.q_dtype, ("B", "TQ", own.heads, own.dim))
    sums = _walk(f, [tile.full(0.0, f.rows, d.axis) for d in f.dims], visit)
    sums = through(query(f, 0), sums, f.dims) if own.cosine else sums
    for d, value in zip(f.dims, sums, strict=True):
        rounded = tile.cast(mul(value, factor(own)), s.spec.q_dtype)
        tile.store(target, f.batch, f.row, f.head, d.index(), value=rounded, bounds={1: tile.param("TQ")})
    return target


def _key(f: Frame, number: Node, d: Span) -> Node:
    place = (f.batch, number, f.key_head, d.index())
    return tile.load(f.tensors[f.spec.keys], *place, bounds={1: tile.param(f.spec.key_length)}, other=0.0)


def _keys(spec: PooledGrad, schedule: Schedule, parts: Tensor) -> Program:
    """What a share of the tokens gives to a tile of summaries."""
    own = spec.forward
    with tile.Builder() as builder:
        f = _frame(builder, spec, schedule)
        at, part = key_shares.tile_number(schedule.splits)
        number = add(mul(at, schedule.block), tile.iota(f.keys))
        tiles = ceil_div(tile.param("TQ"), schedule.rows)
        each = ceil_div(tiles, schedule.splits)
        first, key_head = mul(part, each), tile.program_id(1)

        def visit(n: Node, *sums: Node) -> Sequence[Node]:
            return _tokens(spec, f, n, key_head, number, sums)

        inits = [tile.full(0.0, f.keys, d.axis) for d in f.dims]
        sums = tile.loop(first, least(add(first, each), tiles), 1, inits, visit)
        for d, total in zip(f.dims, sums, strict=True):
            place = (f.batch, key_head, part, number, d.index())
            tile.store(parts, *place, value=mul(total, factor(own)), bounds={3: tile.param(own.key_length)})
        s = Slope(spec, f, f.head, [], None)
        read = [t for t in _tensors(s, []) if spec.scored or t.name != own.keys]
        grid = (mul(ceil_div(tile.param(own.key_length), schedule.block), schedule.splits), tile.const(own.kv_heads))
        name = f"{spec.name}_keys"
        kept = list(_sums(spec)) if spec.normalised else []
        return builder.program(name, [*read, *kept, parts], params(own), (*grid, tile.param("B")))


def _tokens(spec: PooledGrad, f: Frame, n: Node, key_head: Node, number: Node, sums: Sequence[Node]) -> Sequence[Node]:
    """Add tile ``n`` of the tokens, all heads that read these keys; heads of one list share what is pulled."""
    own, schedule = spec.forward, f.schedule
    group, first = own.heads // own.kv_heads, mul(n, schedule.rows)
    row, offset = add(first, tile.iota(f.rows)), tile.param("q_offset")
    last = sub(least(add(first, schedule.rows), tile.param("TQ")), 1)
    env = {**f.env, "i": add(row, offset), "i_lo": add(first, offset), "i_hi": add(last, offset)}
    moved = replace(f, row=row, env=env, key_head=key_head)
    together = sharing(own) > 1
    shared = Slope(spec, moved, key_head, [], None).pulled(number) if together else None

    def visit(local: Node, *carried: Node) -> Sequence[Node]:
        head = add(mul(key_head, group), local)
        own_frame = replace(moved, head=head, env={**env, "h": head})
        queries, bounds = query(own_frame, 0), {1: tile.param("TQ")}
        kept = [tile.load(t, f.batch, row, head, bounds=dict(bounds)) for t in _sums(spec)] if spec.normalised else []
        s = Slope(spec, own_frame, head, queries, (kept[0], kept[1]) if kept else None)
        slope = tile.cast(s.of(number, shared if shared is not None else s.pulled(number)), own.dtype)
        slope = tile.apply(
            Fn.WHERE, tile.apply(Fn.LT, row, tile.param("TQ")), slope, tile.cast(tile.const(0.0), own.dtype)
        )
        read = [tile.cast(q, own.dtype) for q in unit(queries, f.dims)] if own.cosine else queries
        return [tile.dot(slope, q, f.rows, x, schedule.precision) for q, x in zip(read, carried, strict=True)]

    return visit(tile.const(0), *sums) if group == 1 else tile.loop(0, group, 1, sums, visit)


def default(spec: PooledGrad, target: str) -> Schedule:
    """What registers of sm_90 hold without spills, the tokens in 8 shares; not measured on a GPU."""
    if not target.startswith("triton"):
        return Schedule(rows=16, block=16, splits=2, lanes=("m", "n", "d", "f"), split_dims=False)
    own = spec.forward
    if own.dtype == "float32":
        return Schedule(rows=16, block=16, splits=8, warps=8, stages=1)
    rows = 32 if own.key_dtype in (None, own.dtype) and own.dim <= 128 else 16
    block = 32 if own.dim <= 128 and not (spec.together and spec.normalised) else 16
    return Schedule(rows=rows, block=block, splits=8, warps=4, stages=1)


def space(spec: PooledGrad, target: str) -> dict[str, tuple[object, ...]]:
    """Tile sizes, shares, warps and stages."""
    if not target.startswith("triton"):
        return {"rows": (8, 16, 32), "block": (8, 16, 32)}
    return {
        "rows": (16, 32, 64), "block": (16, 32, 64), "splits": (1, 4, 8, 16), "warps": (2, 4, 8), "stages": (1, 2)
    }  # fmt: skip
