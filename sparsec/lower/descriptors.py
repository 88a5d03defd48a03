"""Where loading boxes through TMA descriptors is the better default."""

from __future__ import annotations

from dataclasses import replace
from math import gcd

from sparsec.tile.schedule import Schedule

TARGETS = ("triton:sm_90", "triton:sm_100")
"""Targets whose descriptors were seen to pay."""


def pay(target: str, dtype: str, *dims: int) -> bool:
    """Half-precision rows that are powers of two, whole: what TMA loads faster than pointers do on Hopper."""
    return target in TARGETS and dtype != "float32" and all(d & (d - 1) == 0 for d in dims)


def without_roles(found: Schedule) -> Schedule:
    """The schedule where boxes cannot be loaded: tiles of 64 x 64, whose four warps all load and compute.

    A schedule without a warp that loads for the others stays as it is.
    """
    if not found.has_roles:
        return found
    few = replace(found, rows=64, block=gcd(found.block, 64), warps=4, stages=2, registers=0)
    return replace(few, descriptors=False, producer=False)
