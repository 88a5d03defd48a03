"""Where a cache keeps what: the block table and rows per page of every tensor that decode kernels read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm

from sparsec.lower.decode.pages import Paged
from sparsec.passes.stream_spec import CacheSpec, Kept
from sparsec.plan.plan import Plan
from sparsec.plan.specs import GatheredAttention, Summarise
from sparsec.scalar.evaluate import evaluate

BLOCKS = "cache_blocks"
"""The block table of what grows."""


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor of the cache.

    Attributes:
        row: the extents of a row.
        ring: (window, sinks) where rows are dropped; None for pages of the pool.
        cold: whether its pages live in the host's memory.
    """

    paged: Paged
    row: tuple[int, ...]
    dtype: str
    ring: tuple[int, int] | None = None
    cold: bool = False


UNBOUNDED = 2**30
"""Tokens of a sequence of which nothing is kept that grows with them."""


@dataclass(frozen=True, slots=True)
class Bank:
    """The states of a written bank.

    Attributes:
        name: of the step's input.
        shape: of a sequence's: parts, heads, rows, columns.
        initial: the declared input with the first states; None where they are zero.
    """

    name: str
    shape: tuple[int, ...]
    initial: str | None
    dtype: str = "float32"


def banks(spec: CacheSpec, dims: Mapping[str, int]) -> tuple[Bank, ...]:
    """The states of a cache at these dims."""
    return tuple(Bank(s.name, tuple(int(evaluate(d, dims)) for d in s.shape), s.initial) for s in spec.states)


def table_of(kept: Kept) -> str:
    """The block table of an input."""
    return BLOCKS if kept.window is None else f"cache_ring_{kept.window}_{kept.sinks}"


def page_size(spec: CacheSpec, wanted: int) -> int:
    """The least multiple of what a page must hold whole (chunks, strides) that is no less than wanted."""
    unit = lcm(*(k.unit for k in spec.kept), *(r.stride for r in spec.running))
    return -(-wanted // unit) * unit


def longest_chunk(plan: Plan) -> int:
    """Tokens of the longest chunk that is read as a whole; it may be longer than a page."""
    return max((k.spec.chunk for k in plan.kernels if isinstance(k.spec, GatheredAttention)), default=1)


def places(spec: CacheSpec, plan: Plan, dims: Mapping[str, int], page: int, cold: bool = False) -> dict[str, Place]:
    """Every kept input and running summary by buffer name; ``page`` as ``page_size`` gives it."""
    found = {}
    for kept in spec.kept:
        buffer = plan.buffer(kept.name) if any(b.name == kept.name for b in plan.buffers) else None
        if buffer is None:
            continue  # declared, but no kernel reads it: keys and values behind given landmarks
        ring = None if kept.window is None else (kept.window, kept.sinks)
        row = buffer.size(dims)[2:]
        found[kept.name] = Place(
            Paged(table_of(kept), page // kept.unit), row, buffer.dtype, ring, cold and kept.chosen
        )
    for kernel in plan.kernels:
        if isinstance(kernel.spec, Summarise):
            buffer = plan.buffer(kernel.spec.out)
            place = Place(Paged(BLOCKS, page // kernel.spec.stride), buffer.size(dims)[2:], buffer.dtype)
            found[buffer.name] = place
    return found
