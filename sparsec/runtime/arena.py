"""Where a plan's temporaries and scratch buffers lie in one block of memory: those alive at one time lie apart."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from sparsec.plan.memory import lifetimes
from sparsec.plan.plan import ITEM_BYTES, Plan
from sparsec.runtime.kernel import Fixed

STEP = 256
"""Every buffer starts at a multiple of so many bytes, as torch's own allocations do at least."""

Life = tuple[int, int]
"""The first and the last kernel, by position, that touches a buffer."""


def arena(plan: Plan, dims: Mapping[str, int], fixed: Mapping[str, Fixed]) -> tuple[dict[str, int], int]:
    """Byte offsets of temporaries by name and of scratch by ``kernel/name``, and the bytes of the whole.

    ``fixed`` has what each kernel needs, by its name.
    """
    alive = lifetimes(plan)
    kept = [b for b in plan.buffers if b.role == "temporary" and b.name in alive]
    needs = [(b.name, b.nbytes(dims), alive[b.name]) for b in kept]
    for position, kernel in enumerate(plan.kernels):
        for name, shape, dtype in fixed[kernel.name].scratch:
            needs.append((f"{kernel.name}/{name}", prod(shape) * ITEM_BYTES[dtype], (position, position)))
    return placed({name: (-(-size // STEP) * STEP, life) for name, size, life in needs})


def placed(needs: Mapping[str, tuple[int, Life]]) -> tuple[dict[str, int], int]:
    """Offsets, the largest buffer first, each at the lowest place that is free while it lives; and the end of all."""
    offsets: dict[str, int] = {}
    for name in sorted(needs, key=lambda n: -needs[n][0]):
        size, (first, last) = needs[name]
        rivals = sorted(
            (offsets[n], offsets[n] + needs[n][0])
            for n in offsets
            if needs[n][1][0] <= last and first <= needs[n][1][1]
        )
        at = 0
        for start, end in rivals:
            if at + size <= start:
                break
            at = max(at, end)
        offsets[name] = at
    return offsets, max((offsets[n] + needs[n][0] for n in offsets), default=0)
