"""Gradients of the units that a selector scored: each unit's program walks the queries that chose it.

The inverse of the lists (``sparsec.lower.inverse.index``) finds them, cut into shares, so that a popular unit is no
single long loop. A unit is a single row of the gradient: products are summed in fp32 without a dot.
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
from sparsec.lower.pieces import Span, spans
from sparsec.lower.scalars import add, both, ceil_div, most, mul
from sparsec.lower.select import grad_space as selector_grad_space
from sparsec.lower.select.frame import sharing
from sparsec.plan.grad_specs import SelectorGradKeys
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.walk import substitute
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: SelectorGradKeys, schedule: Schedule) -> Lowered:
    """scores_grad ``[B,TQ,HS,K]``, q ``[B,TQ,H,D]`` -> grad_keys ``[B,N,HKV,D]``.

    Inside this kernel the units are its tokens: TK counts them.
    """
    selector_grad_space.check_keys(spec.forward, schedule)
    wide = replace(schedule, warps=4, stages=1)
    index = turned(_lists(spec), schedule, wide, schedule.rows // sharing(spec.forward))
    steps = (*index.steps, Step(_walk(spec, schedule), schedule), Step(_sum(spec, schedule), replace(wide, warps=1)))
    params = (("TK", _units(spec)), *_over_units(spec, index.params))
    return Lowered(steps, (*index.scratch, as_scratch(_parts(spec))), params, _over_units(spec, index.limits))


def _units(spec: SelectorGradKeys) -> Expr:
    return var(spec.forward.key_length)


def _over_units(spec: SelectorGradKeys, params: Sequence[tuple[str, Expr]]) -> tuple[tuple[str, Expr], ...]:
    return tuple((name, substitute(value, {"TK": _units(spec)})) for name, value in params)


def _lists(spec: SelectorGradKeys) -> GatheredAttention:
    """The lists as those of attention over chunks of one token, for the inverse."""
    own = spec.forward
    scope = "head" if own.group is None and own.heads > own.kv_heads else "kv_head"
    return GatheredAttention(
        spec.name, own.q, own.keys, own.keys, own.indices, None, spec.grad_keys, None, scope, own.slots, 1, own.heads,
        own.kv_heads, own.dim, own.dim, own.scale, own.dtype,
    )  # fmt: skip


def _out(spec: SelectorGradKeys) -> Tensor:
    own = spec.forward
    return Tensor(spec.grad_keys, spec.out_dtype, ("B", "TK", own.kv_heads, own.dim))


def _parts(spec: SelectorGradKeys) -> Tensor:
    """Partial sums ``[B, HKV, XT, D]`` of units that were cut into shares."""
    own = spec.forward
    return Tensor(f"{spec.name}_parts", "float32", ("B", own.kv_heads, "XT", own.dim))


@dataclass(frozen=True, slots=True)
class Walk:
    """One share of the queries that chose a unit.

    Attributes:
        at: batch, and key/value head.
    """

    spec: SelectorGradKeys
    schedule: Schedule
    found: Inverse
    at: tuple[Node, Node]
    share: Share
    rows: Axis
    dims: list[Span]
    q: Tensor
    scores_grad: Tensor

    @property
    def step(self) -> int:
        """Choices of a tile of rows."""
        return self.schedule.rows // sharing(self.spec.forward)


def _walk(spec: SelectorGradKeys, schedule: Schedule) -> Program:
    """The kernel of one (share, key/value head, batch) per grid point."""
    own = spec.forward
    with tile.Builder() as builder:
        lists = _lists(spec)
        found = inverse.inverse(lists, schedule, complete=True)
        listed, at = shares.buffer(lists, found), (tile.program_id(2), tile.program_id(1))
        rows, dims = builder.axis("m", schedule.rows), spans(builder, "d", own.dim, schedule)
        q = Tensor(own.q, own.dtype, ("B", "TQ", own.heads, own.dim))
        grads = Tensor(spec.scores_grad, "float32", ("B", "TQ", own.heads // sharing(own), own.slots))
        w = Walk(spec, schedule, found, at, shares.read(listed, at, tile.program_id(0)), rows, dims, q, grads)

        def visit(n: Node, *sums: Node) -> Sequence[Node]:
            return _step(w, n, sums)

        inits = [tile.full(0.0, rows, d.axis) for d in dims]
        sums = tile.loop(0, ceil_div(w.share.count, w.step), 1, inits, visit, schedule.stages)
        _write(w, [mul(tile.reduce("sum", x, rows), selector_grad_space.scale(own)) for x in sums])
        tensors = [q, grads, found.entries, listed, _out(spec), _parts(spec)]
        grid = (tile.param("WT"), tile.const(own.kv_heads), tile.param("B"))
        return builder.program(spec.name, tensors, [(name, "int32") for name in (*shares.PARAMS, "ET")], grid)


def _step(w: Walk, n: Node, sums: Sequence[Node]) -> list[Node]:
    """Add a tile of choices, each with the heads that share its list."""
    own, found, row = w.spec.forward, w.found, tile.iota(w.rows)
    share = sharing(own)
    lane = tile.apply(Fn.TRUNCDIV, row, share)
    entry = add(mul(n, w.step), lane)
    there = tile.apply(Fn.LT, entry, w.share.count)
    if w.step * share < w.schedule.rows:
        there = both(there, tile.apply(Fn.LT, lane, w.step))
    place = tile.apply(Fn.WHERE, there, add(w.share.first, entry), tile.param("ET"))
    choice = tile.load(found.entries, *w.at, place, bounds={2: tile.param("ET")})
    token = tile.apply(Fn.WHERE, there, tile.apply(Fn.TRUNCDIV, choice, found.per_token), tile.param("TQ"))
    slot, heads = tile.apply(Fn.TRUNCMOD, choice, own.slots), own.heads // own.kv_heads
    local = tile.apply(Fn.TRUNCMOD, row, share)
    listed = w.at[1]
    if found.lists > 1:
        local = tile.apply(Fn.TRUNCMOD, tile.apply(Fn.TRUNCDIV, choice, own.slots), found.lists)
        listed = add(mul(w.at[1], heads), local)
    head, bounds = add(mul(w.at[1], heads), local), {1: tile.param("TQ")}
    grads = tile.load(w.scores_grad, w.at[0], token, listed, slot, bounds=dict(bounds))
    read = (tile.load(w.q, w.at[0], token, head, d.index(), bounds=dict(bounds)) for d in w.dims)
    return [add(x, mul(tile.cast(q, "float32"), grads)) for x, q in zip(sums, read, strict=True)]


def _write(w: Walk, totals: Sequence[Node]) -> None:
    """Round and store where the share is the unit's only one, else keep a partial sum."""
    whole, own = tile.apply(Fn.LT, w.share.place, 0), w.spec.forward
    columns = tile.apply(Fn.WHERE, whole, 0, own.dim)
    place = (*w.at, most(w.share.place, 0))
    for d, total in zip(w.dims, totals, strict=True):
        tile.store(_parts(w.spec), *place, d.index(), value=total, bounds={3: columns})
    _store(w.spec, w.at, w.share, whole, list(zip(w.dims, totals, strict=True)))


def _store(
    spec: SelectorGradKeys, at: tuple[Node, Node], share: Share, there: Node, totals: Sequence[tuple[Span, Node]]
) -> None:
    """Round and store the gradient of a share's unit, if there is one and ``there`` holds."""
    there = both(there, tile.apply(Fn.LE, 0, share.chunk))
    columns = tile.apply(Fn.WHERE, there, spec.forward.dim, 0)
    for d, total in totals:
        place = (at[0], most(share.chunk, 0), at[1], d.index())
        tile.store(_out(spec), *place, value=tile.cast(total, spec.out_dtype), bounds={3: columns})


def _sum(spec: SelectorGradKeys, schedule: Schedule) -> Program:
    """The kernel of one (share, key/value head, batch) per grid point; first shares add their unit's partial sums."""
    with tile.Builder() as builder:
        lists, parts = _lists(spec), _parts(spec)
        listed = shares.buffer(lists, inverse.inverse(lists, schedule, complete=True))
        at, dims = (tile.program_id(2), tile.program_id(1)), spans(builder, "d", spec.forward.dim, schedule)
        share = shares.read(listed, at, tile.program_id(0))

        def visit(n: Node, *sums: Node) -> Sequence[Node]:
            read = (tile.load(parts, *at, add(share.place, n), d.index()) for d in dims)
            return [add(x, y) for x, y in zip(sums, read, strict=True)]

        sums = tile.loop(0, share.pieces, 1, [tile.full(0.0, d.axis) for d in dims], visit)
        several = tile.apply(Fn.LT, 0, share.pieces)
        _store(spec, at, share, several, list(zip(dims, sums, strict=True)))
        grid = (tile.param("WT"), tile.const(spec.forward.kv_heads), tile.param("B"))
        tensors = [listed, parts, _out(spec)]
        return builder.program(f"{spec.name}_sum", tensors, [(name, "int32") for name in (*shares.PARAMS, "ET")], grid)
