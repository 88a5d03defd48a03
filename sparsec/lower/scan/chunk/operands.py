"""Products of tiles in fp32 with those of half precision: rounded, or as sums of two."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product as cross

from sparsec.lower.scalars import mul
from sparsec.plan.states.scan_specs import Writes
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node


def times(*factors: Node | None) -> Node | None:
    """The product of what is there."""
    found = [f for f in factors if f is not None]
    made = found[0] if found else None
    for factor in found[1:]:
        assert made is not None
        made = mul(made, factor)
    return made


def scaled(x: Node, *factors: Node | None) -> Node:
    """x times whatever factors are there, in fp32, back in its own dtype."""
    factor = times(*factors)
    return x if factor is None else tile.cast(mul(tile.cast(x, "float32"), factor), x.dtype)


def halves(x: Node, dtype: str) -> list[Node]:
    """fp32 as the sum of two values of a half precision; as it is where ``dtype`` is fp32."""
    if dtype == "float32":
        return [x]
    high = tile.cast(x, dtype)
    return [high, tile.cast(tile.apply(Fn.SUB, x, tile.cast(high, "float32")), dtype)]


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
