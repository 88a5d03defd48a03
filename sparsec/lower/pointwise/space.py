"""Schedules of maps: rows of a tile, tiles of a program where sums are made, warps."""

from __future__ import annotations

from sparsec.lower.pointwise.frame import cut
from sparsec.plan.maps.map_specs import Map, MapGrad, Shape, summed
from sparsec.plan.maps.row_specs import RowLse
from sparsec.tile.schedule import Schedule

TILES = 8
"""Tiles per program where each program leaves a share of a sum."""

MANY = 4
"""Wide sources of a map from which on registers run short."""


def default(spec: Map | MapGrad | RowLse, target: str) -> Schedule:
    """Tiles of about 4096 elements, 2048 for gradients and sums of many: the kernel only moves memory."""
    triton = target.startswith("triton")
    forward = spec.forward if isinstance(spec, MapGrad) else spec
    few = isinstance(spec, MapGrad) or (isinstance(spec, Map) and _wide(spec) > MANY)
    rows = _rows(forward.shape, 2048 if few else 4096) if triton else 16
    tiles = TILES if isinstance(spec, MapGrad) and _sums_rows(spec) else 1
    return Schedule(rows=rows, block=rows * tiles, warps=4, stages=1, lanes=("e", "e_1", "m"), split_dims=triton)


def _wide(spec: Map) -> int:
    """Sources that are as wide as the result."""
    return sum(s.shape[-1:] == spec.shape[-1:] for s in spec.sources)


def _rows(shape: Shape, elements: int) -> int:
    width = shape[-1]
    assert isinstance(width, int)
    return min(128, 1 << (max(elements // width, 1).bit_length() - 1))


def _sums_rows(spec: MapGrad) -> bool:
    row = cut(spec.forward.shape)
    return any(g is not None and row in summed(spec.forward, k) for k, g in enumerate(spec.grads))


def space(spec: Map | RowLse, target: str) -> dict[str, tuple[object, ...]]:
    """Rows per program, and warps."""
    top = default(spec, target).rows
    rows = tuple(dict.fromkeys((max(top // 4, 1), max(top // 2, 1), top, top * 2)))
    return {"rows": rows, "warps": (1, 2, 4, 8)} if target.startswith("triton") else {"rows": rows}


def space_grad(spec: MapGrad, target: str) -> dict[str, tuple[object, ...]]:
    """Rows per tile and per program, and warps."""
    base = default(spec, target)
    rows = tuple(dict.fromkeys((max(base.rows // 2, 1), base.rows)))
    blocks = tuple(base.rows * n for n in ((4, 8, 16, 32) if base.block > base.rows else (1, 2)))
    found: dict[str, tuple[object, ...]] = {"rows": rows, "block": blocks}
    return {**found, "warps": (2, 4, 8)} if target.startswith("triton") else found
