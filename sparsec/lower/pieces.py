"""A head dim as axes: one axis, or powers of two that sum to it (96 = 64 + 32), never padded up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node
from sparsec.tile.schedule import Schedule, ScheduleError


@dataclass(frozen=True, slots=True)
class Span:
    """Columns ``start … start + axis.size - 1`` of a head."""

    start: int
    axis: Axis

    def index(self, base: Node | int = 0) -> Node:
        """The column index tile, from ``base``."""
        from sparsec.lower.scalars import add

        return add(add(base, self.start), tile.iota(self.axis))


def powers(size: int) -> list[int]:
    """The powers of two of ``size``, largest first; each at least 16, as tensor cores need."""
    if size % 16:
        raise ScheduleError(f"head dim {size} is not a multiple of 16; use a head dim of 16, 32, 48, …")
    return [1 << bit for bit in reversed(range(size.bit_length())) if size >> bit & 1]


def spans(builder: tile.Builder, name: str, size: int, schedule: Schedule) -> list[Span]:
    """Axes named ``name``, ``name_1``, … that cover a head dim."""
    sizes = powers(size) if schedule.split_dims else [size]
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    return [
        Span(start, builder.axis(f"{name}_{k}" if k else name, part))
        for k, (start, part) in enumerate(zip(starts, sizes, strict=True))
    ]


def row_dots(outs: Iterable[Node], grads: Iterable[Node], parts: Sequence[Span]) -> Node:
    """Products in fp32, summed over all spans of a split head dim, row by row."""
    from sparsec.lower.scalars import add, mul

    pairs = ((tile.cast(out, "float32"), tile.cast(grad, "float32")) for out, grad in zip(outs, grads, strict=True))
    sums = [tile.reduce("sum", mul(*pair), part.axis) for pair, part in zip(pairs, parts, strict=True)]
    return reduce(add, sums)


def dot_over(
    parts: list[Span], a: list[Node], b: Callable[[Span], Node], precision: str, acc: Node | None = None
) -> Node:
    """The product summed over all spans of a split head dim."""
    for part, left in zip(parts, a, strict=True):
        acc = tile.dot(left, b(part), part.axis, acc, precision)
    assert acc is not None
    return acc
