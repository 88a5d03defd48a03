"""Schedules of gathered attention that the tuner tries first, beside the default: what was best on an H100 elsewhere.

A warp for each token reads its own list as fast as the L2 cache gives it, where a union of unlike lists only adds
products that are masked: 1.92 ms to 2.24 forward and 2.01 to 2.92 for gradients of queries (16 heads of 64, random
chunks), 8.2 to 9.9 (16 heads of 128). Where neighbours agree the default's union is better: 1.01, and 4.1 to 8.0.
"""

from __future__ import annotations

from dataclasses import replace

from sparsec.lower import descriptors
from sparsec.lower.gathered import box_merge, chunks, grad_schedules, key_outer, schedules
from sparsec.lower.gathered.gpu import FEW, row_tile
from sparsec.plan.grad_specs import GatheredGradQ
from sparsec.plan.specs import GatheredAttention
from sparsec.tile.schedule import Schedule


def forward(spec: GatheredAttention, target: str) -> tuple[Schedule, ...]:
    """For outputs; without a maximum a program takes a whole chunk of narrow heads at a time (1.97 ms became 1.92)."""
    default = schedules.default(spec, target)
    own = [replace(s, maximum=default.maximum) for s in _own_lists(spec, default, target)]
    if not default.maximum and max(spec.head_dim, spec.value_dim) <= 64:
        own = [replace(s, block=64, stages=2) for s in own]
    return (*own, *_with_a_maximum(spec, default))


def _with_a_maximum(spec: GatheredAttention, default: Schedule) -> tuple[Schedule, ...]:
    """Where logits are far from zero nothing is gained without one (key-outer, MoBA at T16384: 0.62 ms to 0.60)."""
    if default.producer:
        long = replace(default, peel=False, late=False, merge="alike")
        others = [m for m in ("roles", "walk", "alike") if m != default.merge and box_merge.fits(spec)]
        merged = [replace(default, merge=m) for m in others]
        three = replace(default, rows=192, block=64, warps=12, stages=3, registers=128, late=False)
        return (key_outer.alike(spec, "triton:sm_90"), *merged, three, long, replace(default, maximum=True))
    if default.maximum or spec.chunk % 64:
        return ()
    if default.order == "tile_union":
        narrow = (
            max(spec.head_dim, spec.value_dim) <= 64
        )  # five programs a processor: 1.24 ms to 1.01, lists that agree
        return (*([replace(default, registers=96)] if narrow else []), replace(default, maximum=True))
    return (replace(default, block=64, stages=1, maximum=True),)


def grad_q(spec: GatheredGradQ, target: str) -> tuple[Schedule, ...]:
    """For gradients of queries; of narrow heads also a whole chunk at a time."""
    found = _own_lists(spec.forward, grad_schedules.default_q(spec, target), target)
    narrow = spec.forward.per == "joint" and max(spec.forward.head_dim, spec.forward.value_dim) <= 64
    return (*found, *(replace(s, block=64, stages=2) for s in found if narrow))


def _own_lists(spec: GatheredAttention, default: Schedule, target: str) -> tuple[Schedule, ...]:
    """Query-outer, a warp for 16 heads; a chunk with a softmax of its own in one piece."""
    share, widest = chunks.sharing(spec), max(spec.head_dim, spec.value_dim)
    if target != "triton:sm_90" or spec.dtype == "float32" or share < FEW or spec.chunk % 64 or widest > 128:
        return ()
    rows, boxes = row_tile(share), descriptors.pay(target, spec.dtype, spec.head_dim, spec.value_dim)
    block, stages = (32, 3) if spec.per == "joint" else (64, 2)
    found = replace(default, order="query_outer", rows=rows, block=block, warps=rows // 16, stages=stages)
    return (replace(found, descriptors=boxes, registers=0, phases="branch"),)
