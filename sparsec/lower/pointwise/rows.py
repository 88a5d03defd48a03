"""Row functions over a last dim that is split into columns, and their adjoints."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.pointwise.choice import HIDDEN, Parts, best, over
from sparsec.lower.pointwise.frame import Column
from sparsec.lower.scalars import add, mul, sub
from sparsec.plan.maps.map_specs import MapSource
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node

L2_EPSILON = 1e-6


def _l2norm(x: Parts, columns: Sequence[Column]) -> Parts:
    return [mul(p, _inverse_norm(x, columns)) for p in x]


def _inverse_norm(x: Parts, columns: Sequence[Column]) -> Node:
    square = over("sum", [mul(p, p) for p in x], columns)
    return tile.apply(Fn.RSQRT, add(square, tile.const(L2_EPSILON)))


def _softmax(x: Parts, columns: Sequence[Column], top: int = 0) -> Parts:
    if top:
        marks = best(x, columns, top)
        x = [tile.apply(Fn.WHERE, tile.apply(Fn.LT, 0.0, m), p, HIDDEN) for m, p in zip(marks, x, strict=True)]
    greatest = over("max", x, columns)
    masses = [tile.apply(Fn.EXP, sub(p, greatest)) for p in x]
    total = over("sum", masses, columns)
    return [tile.apply(Fn.DIV, p, total) for p in masses]


def _l2norm_back(x: Parts, grad: Parts, columns: Sequence[Column]) -> Parts:
    """With u = x · r: r · (grad − u · Σ u grad)."""
    r = _inverse_norm(x, columns)
    u = [mul(p, r) for p in x]
    along = over("sum", [mul(a, g) for a, g in zip(u, grad, strict=True)], columns)
    return [mul(r, sub(g, mul(a, along))) for a, g in zip(u, grad, strict=True)]


def _softmax_back(x: Parts, grad: Parts, columns: Sequence[Column], top: int = 0) -> Parts:
    """With p the softmax: p · (grad − Σ p grad)."""
    p = _softmax(x, columns, top)
    along = over("sum", [mul(a, g) for a, g in zip(p, grad, strict=True)], columns)
    return [mul(a, sub(g, along)) for a, g in zip(p, grad, strict=True)]


def through(source: MapSource, x: Parts, columns: Sequence[Column]) -> Parts:
    """A source's row function of its row."""
    if source.row == "softmax":
        return _softmax(x, columns, source.top)
    if source.row == "chosen":
        return best(x, columns, source.top)
    return _l2norm(x, columns) if source.row == "l2norm" else x


def back(source: MapSource, x: Parts, grad: Parts, columns: Sequence[Column]) -> Parts:
    """The gradient of a row from that of its row function; what is chosen has none."""
    if source.row == "softmax":
        return _softmax_back(x, grad, columns, source.top)
    if source.row == "chosen":
        return [mul(g, 0.0) for g in grad]
    return _l2norm_back(x, grad, columns) if source.row == "l2norm" else grad
