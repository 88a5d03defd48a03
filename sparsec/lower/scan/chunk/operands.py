"""Products of tiles in fp32 with those of half precision: rounded, or as sums of two."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product as cross

from sparsec.lower.scan.chunk.parts import halves
from sparsec.plan.states.scan_specs import Writes
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node


def operands(x: Node, writes: Writes, split: bool | None = None) -> list[Node]:
    """fp32 as operands of a product with keys: rounded or, where that costs too much, as a sum of two.

    ``split`` says whether it does; None asks what is written.
    """
    whole = x.dtype == writes.half or not (writes.split if split is None else split)
    return [tile.cast(x, writes.half)] if whole else halves(x, writes.half)


def product(a: Sequence[Node], b: Sequence[Node], over: Axis, total: Node | None, precision: str) -> Node:
    """The product of two sums of operands, added to a total; that of two second halves is too small to count."""
    for (m, x), (n, y) in cross(enumerate(a), enumerate(b)):
        total = total if m and n else tile.dot(x, y, over, total, precision)
    assert total is not None
    return total
