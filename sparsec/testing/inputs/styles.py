"""Schedules by style: the defaults of a GPU, those of a CPU, and one that turns every choice the other way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from sparsec.lower.gathered import chunks
from sparsec.lower.registry import default
from sparsec.plan.grad_specs import AnySpec
from sparsec.plan.plan import Plan
from sparsec.plan.specs import GatheredAttention, Selector, TiledAttention
from sparsec.runtime.compiled import Compiled
from sparsec.tile.schedule import Schedule

GPU, CPU = "triton:sm_90", "tvm:llvm"


def flipped(spec: AnySpec) -> Schedule:
    """The default of a GPU with the other loop order, the other phases, smaller tiles and two blocks of values."""
    base = default(spec, GPU)
    if isinstance(spec, TiledAttention):
        phases = "branch" if base.phases == "split" else "split"
        rows = min([32, *(p.listed.block_q for p in spec.pieces if p.listed is not None)])
        return replace(base, phases=phases, rows=rows, block=16, value_block=_half(spec.value_dim), descriptors=False)
    if isinstance(spec, GatheredAttention) and spec.chunk >= 16:
        rows = max(16, 1 << (chunks.sharing(spec) - 1).bit_length())
        order = "query_outer" if base.order == "tile_union" else "tile_union"
        return replace(base, order=order, rows=rows, block=16, value_block=_half(spec.value_dim), descriptors=False)
    if isinstance(spec, Selector):
        return replace(base, rows=16, block=16)
    return base


def _half(value_dim: int) -> int:
    return value_dim // 2 if value_dim % 32 == 0 else 0


STYLES: dict[str, Callable[[AnySpec], Schedule]] = {
    "gpu": lambda spec: default(spec, GPU),
    "cpu": lambda spec: default(spec, CPU),
    "flipped": flipped,
}


def schedules(plan: Plan, style: str) -> dict[str, Schedule]:
    """A schedule for every kernel of a plan, by its name."""
    return {kernel.name: STYLES[style](kernel.spec) for kernel in plan.kernels}


def set_style(compiled: Compiled, style: str, dims: Mapping[str, int], dtype: str) -> None:
    """Give every kernel that these dims and this dtype lead to a schedule of a style."""
    compiled.schedules = schedules(compiled.plan(dims, dtype), style)
