"""Schedules of tiled attention: a default that needs no tuner, and the choices that a tuner has."""

from __future__ import annotations

from dataclasses import replace
from math import gcd

from sparsec.lower import descriptors
from sparsec.lower.tiled import list_tiles
from sparsec.plan.specs import BlockList, TiledAttention
from sparsec.scalar.walk import depends_on
from sparsec.tile.schedule import Schedule

Choices = dict[str, tuple[object, ...]]

FEW_REGISTERS = ("triton:sm_80", "triton:sm_86", "triton:sm_89")
"""Where products take operands and accumulators from registers."""


MEASURED = {64, 128}
"""Head dims for which a warp that loads for the others was seen to pay: causal T16384 in 0.70 and 0.68 of the time."""


def default(spec: TiledAttention, target: str) -> Schedule:
    """A schedule that is good without tuning, for ``triton:<arch>`` or ``tvm:llvm``."""
    found = _alike(spec, target)
    plain = spec.softcap is None and all(p.bias is None and not p.captures for p in spec.pieces)
    measured = {spec.head_dim, spec.value_dim} <= MEASURED and found.descriptors
    return producer(spec, found) if plain and measured and may_have_producer(spec, target) else found


def _alike(spec: TiledAttention, target: str) -> Schedule:
    """The default of warps that all load and compute."""
    listed = [p.listed for p in spec.pieces if p.listed is not None]
    return list_tiles.within(_default(spec, target, listed), listed)


def _default(spec: TiledAttention, target: str, listed: list[BlockList]) -> Schedule:
    if target.startswith("tvm"):
        rows = listed[0].block_q if listed else 32
        return Schedule(
            rows=rows, block=32, phases="branch", lanes=("m", "e", "n"), split_dims=False, warps=1, stages=1
        )
    value_block = 256 if spec.value_dim > 256 and spec.value_dim % 256 == 0 else 0
    common = Schedule(rows=64, phases="branch" if listed else "split", value_block=value_block)
    if spec.dtype == "float32":
        return _single(spec, target, common)
    widest = max(spec.head_dim, spec.value_dim)
    if widest > 128:
        wide = replace(common, block=32, stages=2)
        return replace(wide, phases="branch", warps=8) if target in FEW_REGISTERS else wide
    seen = any(x.given is None for x in listed)
    if descriptors.pay(target, spec.dtype, spec.head_dim, spec.value_dim) and not seen:
        # Several programs per processor hide each other's latency better than a deep pipeline.
        few = widest <= 80 or (bool(listed) and widest <= 128)
        return replace(common, descriptors=True, stages=1, registers=128 if few else 0)
    return replace(common, block=32 if widest >= 128 else 64, stages=2)


def known(spec: TiledAttention, target: str) -> tuple[Schedule, ...]:
    """What was best somewhere: two small programs per processor, a warp of each loading; alike warps, also four
    programs per processor (a window of 1024 and 64 kept tokens, T32768: 1.32, 1.44 and 1.36 ms; 1.34 by default)."""
    found = default(spec, target)
    if not found.producer:
        return _fewer_registers(spec, found) + ((producer(spec, found),) if may_have_producer(spec, target) else ())
    small = replace(found, rows=64, block=min(found.block, 64), warps=4, registers=128)
    alike = _alike(spec, target)
    return (small, alike, *_fewer_registers(spec, alike))


def _fewer_registers(spec: TiledAttention, found: Schedule) -> tuple[Schedule, ...]:
    """Four programs per processor where there are three, spilling 8 bytes."""
    may = found.descriptors and not found.registers and max(spec.head_dim, spec.value_dim) <= 128
    return (replace(found, registers=128),) if may else ()


def may_have_producer(spec: TiledAttention, target: str) -> bool:
    """Whether a warp that loads for the others is among the choices: whole rows of half precision, on Hopper.

    Scores must be products: a bias in place of them leaves a turn without its first one.
    """
    products = all(p.bias is None or depends_on(p.bias, "score") for p in spec.pieces)
    whole = all(16 <= d <= 128 and d & (d - 1) == 0 for d in (spec.head_dim, spec.value_dim))
    tiles = all(p.listed is None or p.listed.block_q % 128 == 0 for p in spec.pieces) and _longest_box(spec) >= 64
    return target == "triton:sm_90" and spec.dtype != "float32" and whole and tiles and products


def _longest_box(spec: TiledAttention) -> int:
    """Keys of a tile: they divide what lists have, and are no more than a declaration fixes, which no box may be."""
    lists = [p.listed.block_k for p in spec.pieces if p.listed is not None]
    return min([gcd(128, *lists), *(1 << (p.size.bit_length() - 1) for p in spec.pieces if p.size is not None)])


def producer(spec: TiledAttention, base: Schedule) -> Schedule:
    """Two groups of 64 rows, whose keys come a tile ahead."""
    tiles = replace(base, rows=128, block=_longest_box(spec), phases="branch", value_block=0)
    return replace(tiles, warps=8, stages=2, registers=168, descriptors=True, producer=True)


def _single(spec: TiledAttention, target: str, common: Schedule) -> Schedule:
    """fp32: tf32x3 splits every operand in two, so tiles shrink as heads grow; AMD has no tf32x3."""
    widest = max(spec.head_dim, spec.value_dim)
    if target.startswith("triton:gfx"):
        return replace(common, rows=64 if widest <= 128 else 32, block=32 if widest <= 192 else 16, stages=2)
    common = replace(common, precision="tf32x3", stages=2)
    if widest <= 64:
        return replace(common, rows=64 if target == "triton:sm_90" else 32, block=32)
    if widest <= 128:
        whole = widest & (widest - 1) == 0  # a head in two pieces keeps operands of both
        return replace(common, rows=32, block=32 if whole else 16, phases="branch", warps=8)
    value_block = 128 if spec.value_dim > 128 and spec.value_dim % 128 == 0 else common.value_block
    return replace(common, rows=16, block=16, phases="branch", value_block=value_block, warps=8)


def space(spec: TiledAttention, target: str) -> Choices:
    """Every choice the tuner may make; what does not fit the target is filtered before it is compiled."""
    rows, keys = list_tiles.sides([p.listed for p in spec.pieces if p.listed is not None])
    if target.startswith("tvm"):
        sizes = (16, 32, 64)
        tiles = {"rows": list_tiles.choices(sizes, rows), "block": list_tiles.choices(sizes, keys)}
        return {**tiles, "accumulators": (8, 12, 16, 24), "unroll": (1, 2)}
    halves = spec.dtype != "float32"
    return {
        "rows": list_tiles.choices((64, 128), rows),
        "block": list_tiles.choices((32, 64, 128), keys),
        "phases": ("split", "branch") if not rows else ("branch",),
        "descriptors": (False, True) if halves and target in descriptors.TARGETS else (False,),
        "warps": (4, 8),
        "stages": (1, 2, 3),
        "registers": (0, 128, 168),
        "producer": (False, True) if may_have_producer(spec, target) else (False,),
    }
