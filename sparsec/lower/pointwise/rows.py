"""Row functions over a last dim that is split into columns, and their adjoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

from sparsec.lower.pointwise.frame import Column
from sparsec.lower.scalars import add, most, mul, sub
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node

L2_EPSILON = 1e-6

Parts = list[Node]
"""A row, column by column."""


def over(kind: str, x: Sequence[Node], columns: Sequence[Column]) -> Node:
    """The sum or maximum of a row."""
    found = [p if c is None else tile.reduce(kind, p, c.axis) for p, c in zip(x, columns, strict=True)]
    return reduce(add if kind == "sum" else most, found)


def _l2norm(x: Parts, columns: Sequence[Column]) -> Parts:
    return [mul(p, _inverse_norm(x, columns)) for p in x]


def _inverse_norm(x: Parts, columns: Sequence[Column]) -> Node:
    square = over("sum", [mul(p, p) for p in x], columns)
    return tile.apply(Fn.RSQRT, add(square, tile.const(L2_EPSILON)))


def _softmax(x: Parts, columns: Sequence[Column]) -> Parts:
    top = over("max", x, columns)
    masses = [tile.apply(Fn.EXP, sub(p, top)) for p in x]
    total = over("sum", masses, columns)
    return [tile.apply(Fn.DIV, p, total) for p in masses]


def _l2norm_back(x: Parts, grad: Parts, columns: Sequence[Column]) -> Parts:
    """With u = x · r: r · (grad − u · Σ u grad)."""
    r = _inverse_norm(x, columns)
    u = [mul(p, r) for p in x]
    along = over("sum", [mul(a, g) for a, g in zip(u, grad, strict=True)], columns)
    return [mul(r, sub(g, mul(a, along))) for a, g in zip(u, grad, strict=True)]


def _softmax_back(x: Parts, grad: Parts, columns: Sequence[Column]) -> Parts:
    """With p the softmax: p · (grad − Σ p grad)."""
    p = _softmax(x, columns)
    along = over("sum", [mul(a, g) for a, g in zip(p, grad, strict=True)], columns)
    return [mul(a, sub(g, along)) for a, g in zip(p, grad, strict=True)]


FORWARD: dict[str, Callable[[Parts, Sequence[Column]], Parts]] = {
    "none": lambda x, columns: x,
    "l2norm": _l2norm,
    "softmax": _softmax,
}
BACK: dict[str, Callable[[Parts, Parts, Sequence[Column]], Parts]] = {
    "none": lambda x, grad, columns: grad,
    "l2norm": _l2norm_back,
    "softmax": _softmax_back,
}
