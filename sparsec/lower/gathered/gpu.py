"""What is good untuned for gathered attention on a GPU: its loop order, and tiles that fit without spills."""

from __future__ import annotations

from dataclasses import replace

from sparsec.lower import descriptors
from sparsec.lower.gathered import chunks, key_outer, tile_union
from sparsec.plan.specs import GatheredAttention
from sparsec.tile.schedule import Schedule

FEW = 16
"""Heads that share a list fill a tensor-core tile of one token from here on."""


def default(spec: GatheredAttention, target: str) -> Schedule:
    """Key-outer for large chunks that few heads share, query-outer for tiny chunks, tile-union elsewhere."""
    found = _ordinary(spec, target)
    if spec.dtype == "float32":
        return _single(spec, target, found)
    return _wide(spec, target, found) if max(spec.head_dim, spec.value_dim) > 128 else found


def _ordinary(spec: GatheredAttention, target: str) -> Schedule:
    """For half precision and heads up to 128."""
    share = chunks.sharing(spec)
    if spec.chunk < 16:
        return Schedule(rows=row_tile(share), block=64, warps=4, stages=2)
    if share < FEW and spec.chunk >= 128 and spec.chunk % 16 == 0:
        return key_outer.default(spec, target)
    return tile_union.default(spec, target)


def _single(spec: GatheredAttention, target: str, found: Schedule) -> Schedule:
    """fp32: tf32x3 splits every operand in two, so tiles shrink as heads grow; AMD has no tf32x3."""
    widest, amd = max(spec.head_dim, spec.value_dim), target.startswith("triton:gfx")
    rows = 16 if widest > (64 if _tight(spec, found) and not amd else 128) else 32
    found = replace(
        found, rows=_at_least(rows, spec, found), block=min(32 if widest <= 128 else 16, found.block), stages=2
    )
    if amd:
        return found
    value_block = _in_blocks(spec, 64 if _tight(spec, found) else 128) if widest > 128 else 0
    return replace(found, precision="tf32x3", value_block=value_block, warps=4 if widest <= 64 else 8)


def _wide(spec: GatheredAttention, target: str, found: Schedule) -> Schedule:
    """Half precision and heads above 128: fewer keys at a time; fewer rows or values where registers run out."""
    found = replace(found, block=min(found.block, 32), warps=8, stages=2, registers=0)
    if not _tight(spec, found):
        return found
    if target in descriptors.TARGETS:  # Hopper's warp groups want 64 rows
        return replace(found, value_block=_in_blocks(spec, 128))
    return replace(found, rows=_at_least(32, spec, found))


def _tight(spec: GatheredAttention, found: Schedule) -> bool:
    """Whether more than one accumulator is alive at a time."""
    return found.order == "key_outer" or (found.order == "tile_union" and spec.per == "chunk")


def _in_blocks(spec: GatheredAttention, size: int) -> int:
    """So many values at a time where they come in several such blocks, else (0) all at once."""
    return size if spec.value_dim > size and spec.value_dim % size == 0 else 0


def _at_least(rows: int, spec: GatheredAttention, found: Schedule) -> int:
    """So many rows, or as many as a loop order needs to hold the heads that belong together."""
    if found.order == "query_outer":
        return found.rows
    together = spec.heads // spec.kv_heads if found.order == "key_outer" else chunks.sharing(spec)
    return max(rows, 1 << (together - 1).bit_length())


def row_tile(share: int) -> int:
    """Rows of a tensor-core tile for so many heads."""
    return min(64, max(16, 1 << (share - 1).bit_length()))
