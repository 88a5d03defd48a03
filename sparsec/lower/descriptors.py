"""Where loading boxes through TMA descriptors is the better default."""

from __future__ import annotations

from dataclasses import replace
from math import gcd

from sparsec.plan.grad_specs import AnySpec
from sparsec.plan.specs import GatheredAttention
from sparsec.tile.schedule import Schedule

TARGETS = ("triton:sm_90", "triton:sm_100")
"""Targets whose descriptors were seen to pay."""


def pay(target: str, dtype: str, *dims: int) -> bool:
    """Half-precision rows that are powers of two, whole: what TMA loads faster than pointers do on Hopper."""
    return target in TARGETS and dtype != "float32" and all(d & (d - 1) == 0 for d in dims)


def without_roles(found: Schedule, spec: AnySpec | None = None) -> Schedule:
    """The schedule where boxes cannot be loaded: tiles of 64 x 64, whose four warps all load and compute.

    A tile of gathered attention holds the heads of a key/value head, however many. A schedule without a warp that loads
    for the others stays as it is.
    """
    if not found.has_roles:
        return found
    rows = max(64, 1 << (_sharing(spec) - 1).bit_length())
    few = replace(found, rows=rows, block=gcd(found.block, 64), warps=rows // 16, stages=2, registers=0)
    return replace(few, descriptors=False, producer=False)


def _sharing(spec: AnySpec | None) -> int:
    """The heads of a key/value head, where a tile has to hold them."""
    return spec.heads // spec.kv_heads if isinstance(spec, GatheredAttention) else 1
