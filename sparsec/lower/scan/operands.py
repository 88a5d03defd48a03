"""Products of tiles in fp32 with those of half precision: rounded, or as sums of two."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product as cross

from sparsec.lower.scan.chunk_parts import halves
from sparsec.plan.scan_specs import Writes
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node


def operands(x: Node, writes: Writes) -> list[Node]:
    """fp32 as operands of a product with keys: rounded or, where gradients cancel, as a sum of two."""
    whole = x.dtype == writes.k.dtype or not writes.split
    return [tile.cast(x, writes.k.dtype)] if whole else halves(x, writes.k.dtype)


def product(a: Sequence[Node], b: Sequence[Node], over: Axis, total: Node | None, precision: str) -> Node:
    """The product of two sums of operands, added to a total."""
    for x, y in cross(a, b):
        total = tile.dot(x, y, over, total, precision)
    assert total is not None
    return total
