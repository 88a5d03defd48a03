"""Schedules of the backward of tiled attention: defaults that need no tuner, and the choices that a tuner has."""

from __future__ import annotations

from dataclasses import replace

from sparsec.lower import descriptors
from sparsec.lower.tiled import list_tiles
from sparsec.lower.tiled.wide_keys import wide_keys
from sparsec.plan.grad_specs import TiledGradCapture, TiledGradKV, TiledGradQ
from sparsec.tile.schedule import Schedule

Choices = dict[str, tuple[object, ...]]

WARP_GROUPS = descriptors.TARGETS
"""Where products read their operands from shared memory."""

Spec = TiledGradQ | TiledGradKV | TiledGradCapture

CPU = Schedule(rows=32, block=32, phases="branch", lanes=("n", "d", "e", "m"), split_dims=False, warps=1, stages=1)

PROGRAMS = 256
"""How many programs should share the keys that all queries see: about two for each processor of a large GPU."""

FEW = 4
"""Key tiles of summaries, whose number only the length tells: 256 summaries are those of 16K tokens by 64."""


def default_q(spec: TiledGradQ, target: str) -> Schedule:
    """For the gradient of the queries."""
    return _from_queries(spec, target)


def default_capture(spec: TiledGradCapture, target: str) -> Schedule:
    """For the gradient of a captured tensor."""
    return _from_queries(spec, target)


def default_kv(spec: TiledGradKV, target: str) -> Schedule:
    """For the gradients of keys and values."""
    listed = [spec.listed] if spec.listed is not None else []
    made = list_tiles.within(CPU if target.startswith("tvm") else _from_keys(spec, target), listed)
    if listed:
        made = replace(made, descriptors=_descriptors(spec, target))
    if made.descriptors and listed and listed[0].given is not None and made.block == 128:
        # A list is no order: a warp that loads ahead hides its reads, or more programs do (H100: 3.10 and 4.85 ms).
        roles = max(spec.forward.head_dim, spec.forward.value_dim) == 128 and may_have_roles(spec, target)
        made = with_roles(made) if roles else replace(made, block=64, warps=4)
    return replace(made, splits=_splits(spec, made.block, 4 if target.startswith("tvm") else PROGRAMS))


def may_have_roles(spec: TiledGradKV, target: str) -> bool:
    """Whether a warp may load for two groups of 64 keys that keep both sums: heads of 64 or 128 in bf16, on Hopper."""
    forward, piece = spec.forward, spec.forward.pieces[spec.piece]
    alike = forward.head_dim == forward.value_dim and forward.head_dim in (64, 128)
    plain = forward.dtype == spec.grad_dtype == "bfloat16" and forward.softcap is None and piece.bias is None
    both = spec.grad_k is not None and spec.grad_v is not None
    tiles = spec.listed is None or (spec.listed.block_q % 64 == 0 and spec.listed.block_k % 128 == 0)
    return target == "triton:sm_90" and alike and plain and both and tiles and not spec.ragged and piece.size is None


def with_roles(made: Schedule) -> Schedule:
    """Tiles of 128 keys that meet 64 queries a turn."""
    return replace(made, rows=64, block=128, warps=8, stages=2, registers=168, descriptors=True, producer=True)


def known_kv(spec: TiledGradKV, target: str) -> tuple[Schedule, ...]:
    """What was best somewhere: a warp that loads for the others."""
    found = default_kv(spec, target)
    if found.producer or found.splits != 1 or not may_have_roles(spec, target):
        return ()
    return (with_roles(found),)


def _splits(spec: TiledGradKV, block: int, programs: int) -> int:
    """So many that wide key tiles have about that many programs; a power of two, at most 64."""
    keys = wide_keys(spec.forward.pieces[spec.piece])
    tiles = (FEW if isinstance(keys, str) else -(-keys // block)) * spec.forward.kv_heads
    share = programs // tiles if tiles else 1
    return min(1 << max(share.bit_length() - 1, 0), 64)


def _from_queries(spec: TiledGradQ | TiledGradCapture, target: str) -> Schedule:
    """A tile of queries keeps one accumulator."""
    lists = [p.listed for p in spec.forward.pieces if p.listed is not None]
    if target.startswith("tvm"):
        return list_tiles.within(replace(CPU, lanes=("m", "d", "e", "n")), lists)
    widest = max(spec.forward.head_dim, spec.forward.value_dim)
    common = Schedule(rows=64, block=64, phases="split", stages=1)
    if spec.forward.dtype == "float32":
        found = _single(common, target, widest)
        found = replace(found, rows=64) if widest in (32, 64) and target == "triton:sm_90" else found
    elif widest > 128:
        pipelined = widest <= 192 and target in WARP_GROUPS
        found = replace(common, block=32, stages=2) if pipelined else replace(common, block=16, phases="branch")
    elif target in WARP_GROUPS:
        given = bool(lists) and all(x.given for x in lists)
        boxes = _descriptors(spec, target) and (given or not lists)
        found = replace(common, descriptors=boxes, stages=2 if given and boxes else 1)
    else:
        found = replace(common, block=64 if widest <= 64 else 32, stages=1 if target.startswith("triton:gfx") else 2)
    return list_tiles.within(found, lists)


def _from_keys(spec: TiledGradKV, target: str) -> Schedule:
    """A tile of keys keeps two accumulators: half the registers of a thread where heads are wide."""
    widest = max(spec.forward.head_dim, spec.forward.value_dim)
    # fp16 is brought near one before it is rounded: products then have registers of their own.
    apart = widest > 128 or (widest > 64 and spec.forward.dtype == "float16")
    common = Schedule(rows=32, block=64, phases="split", stages=2)
    if spec.forward.dtype == "float32":
        return replace(_single(common, target, widest), order="query_outer" if widest <= 64 else "apart")
    if widest > (192 if target in WARP_GROUPS else 128):
        warps = 4 if target.startswith("triton:gfx") else 8
        return replace(common, order="apart", block=32, phases="branch", warps=warps, stages=1)
    if target in WARP_GROUPS:
        # Chained products share nothing between warp groups but rows: eight warps need 128 keys.
        if widest <= 64:
            return replace(common, descriptors=_descriptors(spec, target))
        found = replace(common, block=128, warps=8)
        return replace(found, order="apart", phases="branch") if apart else found
    # Without a limit the assembler aims at three programs per processor, and spills.
    amd = target.startswith("triton:gfx")
    found = replace(common, phases="branch", stages=1 if amd else 2, registers=0 if amd else 255)
    return replace(found, order="apart") if apart else found


def _descriptors(spec: Spec, target: str) -> bool:
    forward = spec.forward
    return descriptors.pay(target, forward.dtype, forward.head_dim, forward.value_dim)


def _single(made: Schedule, target: str, widest: int) -> Schedule:
    """fp32: tf32x3 splits every operand in two, too much for heads in two pieces; AMD has no tf32x3."""
    small = replace(made, rows=32, block=32, phases="branch", stages=1)
    if target.startswith("triton:gfx") or widest & (widest - 1):
        return replace(small, rows=16 if widest > 64 else 32)
    precise = replace(small, rows=16, precision="tf32x3")
    return precise if widest <= 64 else replace(precise, block=16, warps=8)


def space(spec: Spec, target: str) -> Choices:
    """Every choice the tuner may make; what does not fit the target is filtered before it is compiled."""
    if target.startswith("tvm"):
        lanes = (("n", "d", "e", "m"), ("m", "d", "e", "n"), ("d", "e", "n", "m"))
        return {"rows": (16, 32, 64), "block": (16, 32, 64), "lanes": lanes, "accumulators": (8, 12, 16)}
    halves = spec.forward.dtype != "float32"
    roles = isinstance(spec, TiledGradKV) and may_have_roles(spec, target)
    sizes = (32, 64, 128) if halves else (16, 32, 64)
    return {
        "order": ("query_outer", "apart") if isinstance(spec, TiledGradKV) else ("query_outer",),
        "rows": sizes,
        "block": sizes,
        "phases": ("split", "branch"),
        "descriptors": (False, True) if halves and target in WARP_GROUPS else (False,),
        "warps": (4, 8),
        "stages": (1, 2, 3),
        **({"producer": (False, True), "registers": (0, 168)} if roles else {}),
        **({"splits": (1, 8, 16, 32, 64)} if isinstance(spec, TiledGradKV) and _splits(spec, 64, PROGRAMS) > 1 else {}),
    }
