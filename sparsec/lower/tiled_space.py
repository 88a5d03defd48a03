"""Schedules of tiled attention: a default that needs no tuner, and the choices that a tuner has."""

from __future__ import annotations

from dataclasses import replace

from sparsec.lower import descriptors
from sparsec.plan.specs import TiledAttention
from sparsec.tile.schedule import Schedule

Choices = dict[str, tuple[object, ...]]


def default(spec: TiledAttention, target: str) -> Schedule:
    """A schedule that is good without tuning, for ``triton:<arch>`` or ``tvm:llvm``."""
    listed = [p.listed for p in spec.pieces if p.listed is not None]
    if target.startswith("tvm"):
        rows = listed[0].block_q if listed else 32
        return Schedule(
            rows=rows, block=32, phases="branch", lanes=("m", "e", "n"), split_dims=False, warps=1, stages=1
        )
    precision = "tf32x3" if spec.dtype == "float32" else "ieee"
    value_block = 256 if spec.value_dim > 256 and spec.value_dim % 256 == 0 else 0
    wide = max(spec.head_dim, spec.value_dim) > 128 or spec.dtype == "float32"
    common = Schedule(rows=64, phases="branch" if listed else "split", value_block=value_block, precision=precision)
    if wide:
        return replace(common, block=32, stages=2)
    if descriptors.pay(target, spec.dtype, spec.head_dim, spec.value_dim) and not listed:
        # Several programs per processor hide each other's latency better than a deep pipeline.
        narrow = max(spec.head_dim, spec.value_dim) <= 80
        return replace(common, descriptors=True, stages=1, registers=128 if narrow else 0)
    return replace(common, block=32 if max(spec.head_dim, spec.value_dim) >= 128 else 64, stages=2)


def space(spec: TiledAttention, target: str) -> Choices:
    """Every choice the tuner may make; what does not fit the target is filtered before it is compiled."""
    listed = [p.listed for p in spec.pieces if p.listed is not None]
    if target.startswith("tvm"):
        rows = (16, 32, 64) if not listed else tuple(r for r in (16, 32, 64) if listed[0].block_q % r == 0)
        return {"rows": rows, "block": (16, 32, 64), "accumulators": (8, 12, 16, 24), "unroll": (1, 2)}
    halves = spec.dtype != "float32"
    return {
        "rows": (64, 128) if not listed else (listed[0].block_q,),
        "block": (32, 64, 128) if not listed else (listed[0].block_k,),
        "phases": ("split", "branch") if not listed else ("branch",),
        "descriptors": (False, True) if halves and target in descriptors.TARGETS else (False,),
        "warps": (4, 8),
        "stages": (1, 2, 3),
        "registers": (0, 128, 168),
    }
