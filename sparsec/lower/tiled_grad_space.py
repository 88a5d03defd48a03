"""Schedules of the backward of tiled attention: defaults that need no tuner, and the choices that a tuner has."""

from __future__ import annotations

from dataclasses import replace

from sparsec.lower.wide_keys import wide_keys
from sparsec.plan.grad_specs import TiledGradCapture, TiledGradKV, TiledGradQ
from sparsec.plan.specs import BlockList
from sparsec.tile.schedule import Schedule

Choices = dict[str, tuple[object, ...]]

CPU = Schedule(phases="branch", lanes=("n", "d", "e", "m"), split_dims=False, warps=1, stages=1)

PROGRAMS = 256
"""How many programs should share the keys that all queries see: about two for each processor of a large GPU."""


def default_q(spec: TiledGradQ, target: str) -> Schedule:
    """For the gradient of the queries."""
    lists = [p.listed for p in spec.forward.pieces if p.listed is not None]
    return _default(spec, lists, target)


def default_capture(spec: TiledGradCapture, target: str) -> Schedule:
    """For the gradient of a captured tensor."""
    lists = [p.listed for p in spec.forward.pieces if p.listed is not None]
    return _default(spec, lists, target)


def default_kv(spec: TiledGradKV, target: str) -> Schedule:
    """For the gradients of keys and values."""
    made = _default(spec, [spec.listed] if spec.listed is not None else [], target)
    return replace(made, splits=_splits(spec, made.block, 4 if target.startswith("tvm") else PROGRAMS))


def _splits(spec: TiledGradKV, block: int, programs: int) -> int:
    """So many that wide key tiles have about that many programs; a power of two, at most 64."""
    tiles = -(-wide_keys(spec.forward.pieces[spec.piece]) // block) * spec.forward.kv_heads
    share = programs // tiles if tiles else 1
    return min(1 << max(share.bit_length() - 1, 0), 64)


def _default(spec: TiledGradQ | TiledGradKV | TiledGradCapture, lists: list[BlockList], target: str) -> Schedule:
    forward = spec.forward
    if target.startswith("tvm"):
        return replace(CPU, rows=min([32, *(x.block_q for x in lists)]), block=min([32, *(x.block_k for x in lists)]))
    widest = max(forward.head_dim, forward.value_dim)
    common = Schedule(rows=64, block=64, phases="branch" if lists else "split", stages=1)
    return replace(common, block=64 if widest <= 64 else 32)


def space(spec: TiledGradQ | TiledGradKV | TiledGradCapture, target: str) -> Choices:
    """Every choice the tuner may make; what does not fit the target is filtered before it is compiled."""
    if target.startswith("tvm"):
        lanes = (("n", "d", "e", "m"), ("m", "n", "d", "e"), ("d", "e", "n", "m"))
        return {"rows": (16, 32, 64), "block": (16, 32, 64), "lanes": lanes, "accumulators": (8, 12, 16)}
    return {
        "rows": (32, 64, 128),
        "block": (32, 64, 128),
        "phases": ("split", "branch"),
        "warps": (4, 8),
        "stages": (1, 2, 3),
    }
