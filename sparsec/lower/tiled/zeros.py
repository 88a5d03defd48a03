"""A program that fills a tensor with zeros, for those that add to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from sparsec.lower.scalars import add, ceil_div, mul
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor

WIDTH = 128


def extents(tensor: Tensor) -> list[Node]:
    """The extent of every dimension: a number, or a launch parameter."""
    return [tile.param(n) if isinstance(n, str) else tile.const(n) for n in tensor.shape]


def program(name: str, out: Tensor, params: Sequence[tuple[str, str]]) -> Program:
    """Up to 128 elements of the last dimension per grid point; the others are the second grid dimension."""
    with tile.Builder() as builder:
        axis = builder.axis("n", WIDTH)
        *lead, last = extents(out)
        column = add(mul(tile.program_id(0), WIDTH), tile.iota(axis))
        rest, index = tile.program_id(1), list[Node]()
        for extent in reversed(lead):
            index.insert(0, tile.apply(Fn.TRUNCMOD, rest, extent))
            rest = tile.apply(Fn.TRUNCDIV, rest, extent)
        place = (*index, column)
        tile.store(out, *place, value=tile.full(0.0, axis), bounds={len(lead): last})
        return builder.program(name, [out], params, [ceil_div(last, WIDTH), reduce(mul, lead, tile.const(1))])
