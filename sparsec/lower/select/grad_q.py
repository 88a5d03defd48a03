"""From the gradient of the chosen units' weights to that of their scores, and of the queries that scored them.

A program holds a few tokens of one list and walks the list from its end, so that what comes after a slot is known
there. Every chosen key is read once and serves the score and the gradient; products are summed in fp32 without a dot,
since no two tokens share their keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

from sparsec.lower.pieces import Span, spans
from sparsec.lower.scalars import add, ceil_div, mul, sub
from sparsec.lower.select import chosen_grad
from sparsec.lower.select import grad_space as selector_grad_space
from sparsec.lower.select.chosen_grad import Part
from sparsec.lower.select.frame import sharing
from sparsec.plan.grad_specs import SelectorGradQ
from sparsec.plan.specs import Selector
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Frame:
    """A tile of tokens of one list.

    Attributes:
        part: the slots that are looked at together.
        listed: the number of the list; ``head`` its first query head.
    """

    grad: SelectorGradQ
    rows: Axis
    part: Axis
    dims: list[Span]
    batch: Node
    row: Node
    listed: Node
    head: Node
    key_head: Node
    tensors: dict[str, Tensor]

    @property
    def spec(self) -> Selector:
        """The forward kernel."""
        return self.grad.forward

    @property
    def parts(self) -> int:
        """The number of parts of a list."""
        return -(-self.spec.slots // self.part.size)


def lower(spec: SelectorGradQ, schedule: Schedule) -> Program:
    """grad_weights -> scores_grad, both ``[B,TQ,HS,K]`` fp32, and grad_q ``[B,TQ,H,D]`` if it is asked for."""
    selector_grad_space.check_q(spec, schedule)
    with tile.Builder() as builder:
        f = _frame(builder, spec, schedule)
        queries = _queries(f) if _scored(spec.forward) else None
        start = [_total(f), *(tile.full(0.0, f.rows, d.axis) for d in _columns(f))]

        def visit(n: Node, outside: Node, *sums: Node) -> Sequence[Node]:
            return _step(f, n, queries, outside, sums)

        _, *sums = tile.loop(0, f.parts, 1, start, visit) if f.parts > 1 else visit(tile.const(0), *start)
        if spec.grad_q is not None:
            _write(f, sums)
        params = [(n, "int32") for n in dict.fromkeys(["B", "TQ", "TK", "q_offset", spec.forward.key_length])]
        lists = spec.forward.heads // sharing(spec.forward)
        grid = (ceil_div(tile.param("TQ"), schedule.rows), tile.const(lists), tile.param("B"))
        return builder.program(spec.name, list(f.tensors.values()), params, grid)


def _tensors(spec: SelectorGradQ) -> dict[str, Tensor]:
    """Buffers in launch order; without a need for keys or queries they are left out."""
    own = spec.forward
    assert own.weights_out is not None, "scores have a gradient through weights"
    listed: tuple[str | int, ...] = ("B", "TQ", own.heads // sharing(own), own.slots)
    scored = _scored(own)
    queries: tuple[str | int, ...] = ("B", "TQ", own.heads, own.dim)
    keys: tuple[str | int, ...] = ("B", own.key_length, own.kv_heads, own.dim)
    found = [
        *([Tensor(own.q, own.dtype, queries)] if scored else []),
        *([Tensor(own.keys, own.key_dtype or own.dtype, keys)] if scored or spec.grad_q else []),
        Tensor(own.indices, "int32", listed),
        Tensor(own.weights_out, "float32", listed),
        *([Tensor(own.scores_out, "float32", listed)] if own.scores_out else []),
        Tensor(spec.grad_weights, "float32", listed),
        Tensor(spec.scores_grad, "float32", listed),
        *([Tensor(spec.grad_q, spec.out_dtype, queries)] if spec.grad_q else []),
    ]
    return {t.name: t for t in found}


def _scored(own: Selector) -> bool:
    """Whether scores are worked out again."""
    return own.weights in chosen_grad.NEEDS_SCORES and own.scores_out is None


def _frame(builder: tile.Builder, spec: SelectorGradQ, schedule: Schedule) -> Frame:
    own = spec.forward
    rows, part = builder.axis("m", schedule.rows), builder.axis("k", schedule.block)
    dims = spans(builder, "d", own.dim, schedule)
    listed = tile.program_id(1)
    head = mul(listed, sharing(own))
    row = add(mul(tile.program_id(0), schedule.rows), tile.iota(rows))
    key_head = tile.apply(Fn.TRUNCDIV, head, own.heads // own.kv_heads)
    return Frame(spec, rows, part, dims, tile.program_id(2), row, listed, head, key_head, _tensors(spec))


def _columns(f: Frame) -> list[Span]:
    return f.dims if f.grad.grad_q is not None else []


def _each_head(f: Frame, state: Sequence[Node], body: Callable[..., Sequence[Node]]) -> Sequence[Node]:
    """``state = body(head, *state)`` for every head of the list."""
    share = sharing(f.spec)
    if share == 1:
        return body(f.head, *state)
    return tile.loop(0, share, 1, state, lambda n, *carried: body(add(f.head, n), *carried))


def _queries(f: Frame) -> Sequence[Node]:
    """The list's queries in fp32, those of a group summed."""
    tensor = f.tensors[f.spec.q]

    def visit(head: Node, *sums: Node) -> Sequence[Node]:
        read = (tile.load(tensor, f.batch, f.row, head, d.index(), bounds={1: tile.param("TQ")}) for d in f.dims)
        return [add(x, tile.cast(q, "float32")) for x, q in zip(sums, read, strict=True)]

    return _each_head(f, [tile.full(0.0, f.rows, d.axis) for d in f.dims], visit)


def _slot(f: Frame, n: Node) -> Node:
    """The slots of part ``n`` from the list's end; past the last one where the list has begun."""
    place = add(mul(n, f.part.size), tile.iota(f.part))
    slot = sub(tile.const(f.spec.slots - 1), place)
    if f.parts * f.part.size == f.spec.slots:
        return slot
    return tile.apply(Fn.WHERE, tile.apply(Fn.LE, 0, slot), slot, f.spec.slots)


def _place(f: Frame, n: Node) -> tuple[tuple[Node, ...], dict[int, tile.Value]]:
    """The indices of part ``n`` in ``[B,TQ,HS,K]``, and their bounds."""
    return (f.batch, f.row, f.listed, _slot(f, n)), {1: tile.param("TQ"), 3: f.spec.slots}


def _part(f: Frame, n: Node) -> tuple[Part, Node]:
    """Part ``n`` of the lists, and its units; where there is none, the unit past the last."""
    place, bounds = _place(f, n)
    assert f.spec.weights_out is not None
    ids = tile.load(f.tensors[f.spec.indices], *place, bounds=bounds, other=-1)
    valid = tile.apply(Fn.LE, 0, ids)
    read = (tile.load(f.tensors[name], *place, bounds=bounds) for name in (f.spec.weights_out, f.grad.grad_weights))
    weights, grads = (tile.apply(Fn.WHERE, valid, x, 0.0) for x in read)
    return Part(f.part, valid, weights, grads), tile.apply(Fn.WHERE, valid, ids, tile.param(f.spec.key_length))


def _total(f: Frame) -> Node:
    """The sum of w * dw over the whole list, where the weights' rule needs it."""
    start = tile.full(0.0, f.rows)
    if f.spec.weights not in chosen_grad.NEEDS_TOTAL:
        return start

    def visit(n: Node, total: Node) -> Sequence[Node]:
        return [add(total, tile.reduce("sum", _part(f, n)[0].product, f.part))]

    return visit(tile.const(0), start)[0] if f.parts == 1 else tile.loop(0, f.parts, 1, [start], visit)[0]


def _step(f: Frame, n: Node, queries: Sequence[Node] | None, outside: Node, sums: Sequence[Node]) -> list[Node]:
    """Store the gradients of the scores of part ``n``; what its successor needs, and the gradients of the queries."""
    assert f.spec.weights is not None
    part, unit = _part(f, n)
    place, bounds = _place(f, n)
    scores = None if queries is None else _scores(f, unit, queries)
    if f.spec.scores_out is not None:
        scores = tile.load(f.tensors[f.spec.scores_out], *place, bounds=bounds)
    found = chosen_grad.score_grads(f.spec.weights, part, scores, outside)
    tile.store(f.tensors[f.grad.scores_grad], *place, value=found, bounds=bounds)
    if f.spec.weights == "stick":
        outside = add(outside, tile.reduce("sum", part.product, f.part))
    pulled = (tile.reduce("sum", mul(_keys(f, unit, d), found), f.part) for d in _columns(f))
    return [outside, *(add(x, y) for x, y in zip(sums, pulled, strict=True))]


def _keys(f: Frame, unit: Node, d: Span) -> Node:
    """Columns of the chosen keys ``[rows, part, columns]`` in fp32; zeros where there is no unit."""
    bounds: dict[int, tile.Value] = {1: tile.param(f.spec.key_length)}
    return tile.cast(tile.load(f.tensors[f.spec.keys], f.batch, unit, f.key_head, d.index(), bounds=bounds), "float32")


def _scores(f: Frame, unit: Node, queries: Sequence[Node]) -> Node:
    """The scores of the chosen units."""
    products = (tile.reduce("sum", mul(_keys(f, unit, d), q), d.axis) for d, q in zip(f.dims, queries, strict=True))
    return mul(reduce(add, products), selector_grad_space.scale(f.spec))


def _write(f: Frame, sums: Sequence[Node]) -> None:
    """Scale, round and store the gradient of every head's query; those of a group are equal."""
    assert f.grad.grad_q is not None
    target = f.tensors[f.grad.grad_q]
    rounded = [tile.cast(mul(x, selector_grad_space.scale(f.spec)), f.grad.out_dtype) for x in sums]

    def visit(head: Node) -> Sequence[Node]:
        for d, value in zip(f.dims, rounded, strict=True):
            tile.store(target, f.batch, f.row, head, d.index(), value=value, bounds={1: tile.param("TQ")})
        return []

    _each_head(f, [], visit)
