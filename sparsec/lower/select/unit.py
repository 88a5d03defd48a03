"""Vectors by their lengths, for cosines: 0 for a zero vector."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from sparsec.lower.pieces import Span
from sparsec.lower.scalars import add, mul, sub
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node


def inverse_length(x: Sequence[Node], dims: Sequence[Span]) -> Node:
    """1 / |x| of rows that lie in spans of columns, 1 for zero rows."""
    squares = ((tile.cast(part, "float32"), d.axis) for part, d in zip(x, dims, strict=True))
    total = reduce(add, (tile.reduce("sum", mul(part, part), axis) for part, axis in squares))
    some = tile.apply(Fn.LT, 0.0, total)
    return tile.apply(Fn.DIV, 1.0, tile.apply(Fn.SQRT, tile.apply(Fn.WHERE, some, total, 1.0)))


def unit(x: Sequence[Node], dims: Sequence[Span]) -> list[Node]:
    """x / |x| in fp32."""
    inverse = inverse_length(x, dims)
    return [mul(tile.cast(part, "float32"), inverse) for part in x]


def through(x: Sequence[Node], grads: Sequence[Node], dims: Sequence[Span]) -> list[Node]:
    """From the gradients of x / |x| to those of x; a zero row counts as of length 1."""
    inverse, along = inverse_length(x, dims), unit(x, dims)
    products = (tile.reduce("sum", mul(g, u), d.axis) for g, u, d in zip(grads, along, dims, strict=True))
    level = reduce(add, products)
    return [mul(sub(g, mul(u, level)), inverse) for g, u in zip(grads, along, strict=True)]
