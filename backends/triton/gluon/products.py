"""The lines of a turn's products: when they are begun, and when they are waited for."""

from __future__ import annotations

from sparsec.backends.triton.gluon.turns import GROUP_WARPS
from sparsec.tile.language import Axis

SCORES = "dot = hopper.warpgroup_mma_wait(1, deps=(dot,))"


def multiply() -> list[str]:
    """Queries and the keys of this turn, as soon as those are there."""
    keys = "keys_ring.index(slot).permute([1, 0])"
    return [
        "slot = turn % STAGES",
        "mbarrier.wait(keys_full.index(slot), (turn // STAGES) & 1)",
        f"dot = hopper.warpgroup_mma(q_rows, {keys}, nothing, use_acc=False, is_async=True)",
    ]


def add(acc: str, slot: str) -> str:
    """The weights of the turn before meet their values."""
    return f"sums = hopper.warpgroup_mma(weights, values_ring.index({slot}), {acc}, is_async=True)"


def added(acc: str) -> list[str]:
    """What they gave, and the weights' registers back."""
    return [f"{acc}, weights = hopper.warpgroup_mma_wait(0, deps=(sums, weights))"]


def product(columns: Axis) -> str:
    """The layout of a warp group's product."""
    shape = f"instr_shape=[16, {columns.size}, 16]"
    return f"tl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[{GROUP_WARPS}, 1], {shape})"
