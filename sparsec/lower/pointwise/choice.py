"""The largest few elements of a row that is split into columns, ties to the lower index."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from sparsec.lower.pointwise.frame import Column
from sparsec.lower.scalars import add, most, nan_highest
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node

HIDDEN, LEAST = -3e38, -2e38
"""Below every element that counts, and what an element counts at least."""
FAR = 2.0**24
"""A number that no element has."""

Parts = list[Node]
"""A row, column by column."""


def over(kind: str, x: Sequence[Node], columns: Sequence[Column]) -> Node:
    """The sum or maximum of a row."""
    found = [p if c is None else tile.reduce(kind, p, c.axis) for p, c in zip(x, columns, strict=True)]
    return reduce(add if kind == "sum" else most, found)


def best(x: Parts, columns: Sequence[Column], top: int) -> Parts:
    """1 at the ``top`` largest elements, 0 elsewhere: the largest that is left is taken out ``top`` times."""
    x = [nan_highest(p) for p in x]
    numbers = [tile.cast(tile.const(0) if c is None else c.index(), "float32") for c in columns]

    def take(_: Node, *marks: Node) -> list[Node]:
        left = [_unless(m, p) for m, p in zip(marks, x, strict=True)]
        largest = over("max", left, columns)
        found = [
            tile.apply(Fn.WHERE, tile.apply(Fn.EQ, p, largest), n, FAR) for p, n in zip(left, numbers, strict=True)
        ]
        place = tile.apply(Fn.NEG, over("max", [tile.apply(Fn.NEG, f) for f in found], columns))
        return [_mark(m, n, place) for m, n in zip(marks, numbers, strict=True)]

    return tile.loop(0, top, 1, [tile.full(0.0, *p.axes) for p in x], take)


def _unless(mark: Node, x: Node) -> Node:
    return tile.apply(Fn.WHERE, tile.apply(Fn.LT, 0.0, mark), HIDDEN, most(x, LEAST))


def _mark(mark: Node, number: Node, place: Node) -> Node:
    return tile.apply(Fn.WHERE, tile.apply(Fn.EQ, number, place), 1.0, mark)
