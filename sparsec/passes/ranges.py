"""Range and divisibility inference: do element offsets fit int32 at these dims, and by what are row strides divisible.

An analysis, not a rewrite: kernels take strides at run time and form offsets in 64 bits where this cannot rule it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from sparsec.ir.lengths import lengths
from sparsec.ir.variant import Variant
from sparsec.scalar.expr import Expr, constant
from sparsec.scalar.ranges import INT32, Range, range_of
from sparsec.scalar.walk import variables

LENGTHS = ("TQ", "TK")
"""Customary dims that differ from call to call, as the batch does: ranged from 1 to their size; others are fixed."""


@dataclass(frozen=True, slots=True)
class Extent:
    """What is known of a contiguous tensor's offsets.

    Attributes:
        elements: the number of elements as a formula; ``count`` at the given dims.
        longest: the largest length (of the dim ``length``) at which offsets still fit int32; None without a length.
        aligned: the largest power of two, at most 128, that divides the stride from one token to the next.
    """

    name: str
    elements: Expr
    count: int
    fits: bool
    length: str | None
    longest: int | None
    aligned: int

    def __str__(self) -> str:
        kind = "int32" if self.fits else "int64"
        upto = f", int32 up to {self.length} = {self.longest}" if self.length else ""
        size = f"{self.name}: {self.elements} = {self.count} elements"
        return f"{size}, offsets {kind}{upto}, row stride divisible by {self.aligned}"


def extents(variant: Variant, dims: Mapping[str, int]) -> list[Extent]:
    """What is known of each input at these dims."""
    own = sorted(lengths(variant).names)
    return [extent(name, spec.shape, dims, own) for name, spec in variant.inputs.items()]


def extent(name: str, shape: Iterable[Expr], dims: Mapping[str, int], lengths: Sequence[str] = LENGTHS) -> Extent:
    """What is known of one tensor; every dim of its shape has a size in ``dims``."""
    sizes = tuple(shape)
    env = {n: Range(1, size) if n in ("B", *lengths) else Range.of(size) for n, size in dims.items()}
    elements = _product(sizes)
    length = next((n for n in lengths if n in variables(elements)), None)
    return Extent(
        name, elements, int(range_of(elements, env).hi), _last_fits(elements, env), length,
        _longest(elements, length, dims) if length else None, _power_of_two(range_of(_product(sizes[2:]), env)),
    )  # fmt: skip


def _last_fits(elements: Expr, env: Mapping[str, Range]) -> bool:
    return range_of(elements - 1, env).hi < INT32


def _product(dims: Iterable[Expr]) -> Expr:
    return reduce(lambda a, b: a * b, dims, constant(1))


def _longest(elements: Expr, length: str, dims: Mapping[str, int]) -> int:
    """Bisection: the offsets grow with the length."""
    low, high = 1, INT32
    while low < high:
        middle = (low + high + 1) // 2
        env = {name: Range.of(size) for name, size in {**dims, length: middle}.items()}
        low, high = (middle, high) if _last_fits(elements, env) else (low, middle - 1)
    return low


def _power_of_two(row: Range) -> int:
    divisor = row.multiple_of or 128
    return min(divisor & -divisor, 128)
