"""Backward of one key tile of a chosen chunk: weights of pairs, and the gradients of their scores.

As in ``sparsec.plan.grad_specs``: p is a pair's weight, dp its gradient, ds the gradient of the natural logit and dr
that of ``scale * q . k``. Nodes are interned, so what is asked for twice is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsec.lower import softmax
from sparsec.lower.gathered import chunks
from sparsec.lower.gathered.chunks import Frame
from sparsec.lower.pieces import dot_over, row_dots
from sparsec.lower.scalars import add, emit, least, most, mul, sub
from sparsec.scalar.derivative import derivative
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor

Scored = tuple[Node, Node, float]
"""Keys, masked scores and the factor that makes them base-two logits."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """What the rows of a tile bring from later kernels.

    Attributes:
        grads: gradients of the output by spans of its columns, in the dtype of v.
        lse: base-two log-sum-exps, at a height where every weight is zero for rows that see nothing; None, as is
            ``delta``, where every chunk has a softmax of its own.
    """

    grads: list[Node]
    lse: Node | None
    delta: Node | None


def arrived(f: Frame, grad: Tensor, delta: Tensor | None, out: Tensor | None = None) -> Arrived:
    """Gradients, log-sum-exps and deltas of the frame's rows; rows out of bounds see nothing.

    Where ``out`` is given deltas are its rowdots with the gradients, which are stored.
    """
    place, bounds = f.rows.place(f.batch), f.rows.bounds
    grads = [
        tile.cast(tile.load(grad, *place, e.index(f.value_base), bounds=dict(bounds)), f.spec.dtype) for e in f.values
    ]
    if delta is None:
        return Arrived(grads, None, None)
    assert f.spec.lse is not None, "a common softmax has a log-sum-exp"
    lse = tile.load(f.tensors[f.spec.lse], *place, bounds=dict(bounds), other=-math.inf)
    height = tile.apply(Fn.WHERE, tile.apply(Fn.LE, lse, -math.inf), -softmax.HIDDEN, mul(lse, softmax.LOG2E))
    if out is None:
        return Arrived(grads, height, tile.load(delta, *place, bounds=dict(bounds)))
    dots = _dots(f, grads, out)
    tile.store(delta, *place, value=dots, bounds=dict(bounds))
    return Arrived(grads, height, dots)


def _dots(f: Frame, grads: Sequence[Node], out: Tensor) -> Node:
    """Rowdots of outputs as they were stored, and their gradients."""
    place, bounds = f.rows.place(f.batch), f.rows.bounds
    outs = (tile.load(out, *place, e.index(f.value_base), bounds=dict(bounds)) for e in f.values)
    return row_dots(outs, grads, f.values)


def weight_grads(f: Frame, a: Arrived, key: Node) -> Node:
    """dp of some keys."""
    return dot_over(f.values, a.grads, chunks.value_reader(f, key), f.schedule.precision)


def joint(f: Frame, a: Arrived, scored: Scored) -> tuple[Node, Node]:
    """p and ds under the common softmax."""
    assert a.lse is not None and a.delta is not None
    key, scores, scale = scored
    p = tile.apply(Fn.EXP2, sub(mul(scores, scale), a.lse))
    return p, mul(p, sub(weight_grads(f, a, key), a.delta))


@dataclass(frozen=True, slots=True)
class Softmax:
    """A chunk's own softmax: p = exp2(score * scale - top) * factor, and ``mean`` = sum of p * dp.

    ``sink`` is the share of the sink, if there is one.
    """

    top: Node
    factor: Node
    mean: Node
    sink: Node | None = None

    def weights(self, scored: Scored, weight: Node) -> Node:
        """p times the chunk's weight."""
        _, scores, scale = scored
        return mul(tile.apply(Fn.EXP2, sub(mul(scores, scale), self.top)), mul(self.factor, weight))


def own_softmax(f: Frame, a: Arrived, score: Callable[[Node], Scored]) -> Softmax:
    """The softmax of a whole chunk; ``score`` scores a part of it."""

    def visit(part: Node, *state: Node) -> Sequence[Node]:
        return _measure(f, a, state, score(part))

    state = [tile.full(value, f.rows.axis) for value in (softmax.HIDDEN, 0.0, 0.0)]
    if chunks.parts(f) == 1:
        return _settle(f, visit(tile.const(0), *state))
    return _settle(f, tile.loop(0, chunks.parts(f), 1, state, visit, f.schedule.stages))


def _measure(f: Frame, a: Arrived, state: Sequence[Node], scored: Scored) -> list[Node]:
    """Maximum, sum of weights and sum of weights times dp after one more key tile."""
    (top, total, mass), (key, scores, scale) = state, scored
    high = most(top, mul(tile.reduce("max", scores, f.keys), scale))
    p, keep = tile.apply(Fn.EXP2, sub(mul(scores, scale), high)), tile.apply(Fn.EXP2, sub(top, high))
    sums = [tile.reduce("sum", x, f.keys) for x in (p, mul(p, weight_grads(f, a, key)))]
    return [high, *(add(mul(x, keep), s) for x, s in zip((total, mass), sums, strict=True))]


def _settle(f: Frame, state: Sequence[Node]) -> Softmax:
    """The softmax of all that was measured, beside the sink; of nothing, all weights are zero."""
    top, total, mass = state
    empty = tile.apply(Fn.LE, top, softmax.NOTHING)
    keep: Node | float = 1.0
    if f.sink is not None:
        height = mul(f.sink, softmax.LOG2E)
        level = most(top, height)
        keep = tile.apply(Fn.EXP2, sub(top, level))
        beside = tile.apply(Fn.EXP2, sub(height, level))
        total = add(mul(total, keep), beside)
    share = tile.apply(Fn.DIV, keep, tile.apply(Fn.WHERE, empty, 1.0, total))
    factor = tile.apply(Fn.WHERE, empty, 0.0, share)
    sink = None if f.sink is None else tile.apply(Fn.WHERE, empty, 0.0, tile.apply(Fn.DIV, beside, total))
    return Softmax(top, factor, mul(mass, factor), sink)


def own(f: Frame, a: Arrived, found: Softmax, scored: Scored, weight: Node) -> tuple[Node, Node]:
    """The chunk's weight times p, and ds, where a chunk has its own softmax."""
    p = found.weights(scored, weight)
    return p, mul(p, sub(weight_grads(f, a, scored[0]), found.mean))


def through(f: Frame, key: Node, ds: Node) -> Node:
    """dr, from ds through the derivative of bias and soft cap; pairs without a gradient keep none."""
    spec = f.spec
    if spec.softcap is None and spec.bias is None:
        return ds
    bent, env = _pairs(f, key)
    if spec.bias is not None:
        slope = derivative(spec.bias, var("score", "float"))
        if not (slope.head == "const" and slope.value == 1):
            ds = _times(ds, emit(slope, env, f.tensors))
    return ds if bent is None else mul(ds, sub(tile.const(1.0), mul(bent, bent)))


def by_change(f: Frame, key: Node, ds: Node, change: Expr) -> tuple[Node, dict[str, Node]]:
    """ds times a derivative of the bias, and the variables that its expressions read of these pairs."""
    _, env = _pairs(f, key)
    return _times(ds, emit(change, env, f.tensors)), env


def _pairs(f: Frame, key: Node) -> tuple[Node | None, dict[str, Node]]:
    """The soft cap's tanh, if there is a cap, and what a bias reads of some pairs: positions, and scores as capped."""
    spec = f.spec
    raw = mul(
        dot_over(f.dims, f.queries, lambda d: chunks.read(f, spec.k, key, d.index()), f.schedule.precision), spec.scale
    )
    bent = None if spec.softcap is None else tile.apply(Fn.TANH, mul(raw, 1.0 / spec.softcap))
    capped = raw if bent is None or spec.softcap is None else mul(bent, spec.softcap)
    last = sub(tile.param("TK"), 1)
    return bent, {**f.env, "j": least(key, last) if spec.captures else key, "score": capped}


def _times(ds: Node, change: Node) -> Node:
    """Their product; 0 where there is no gradient, whatever the change is."""
    return tile.apply(Fn.WHERE, tile.apply(Fn.EQ, ds, 0.0), 0.0, mul(ds, change))
