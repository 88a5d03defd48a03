"""Shared memory of a kernel whose warps have roles: tiles, and barriers that say which slot is full or free."""

from __future__ import annotations

from sparsec.backends.triton.gluon.turns import GROUP_ROWS, GROUP_WARPS, Roles
from sparsec.backends.triton.text import dtype_name

TILES = ("queries", "keys_ring", "values_ring")
LATE = ("late_rows", "late_full")
"""Rows beside the queries, and the barrier that says they are there; of kernels that have such rows."""

AHEAD = 2
"""Tiles of queries that lie side by side where one is copied while another is read."""
BARRIERS = ("queries_full", "keys_full", "values_full", "free")
MOST_SWIZZLED = 128
"""Bytes of a row that are swizzled."""


def memory(made: Roles, stages: int) -> list[str]:
    """The lines that allocate it and make its barriers ready; a slot is free when every group has said so."""
    walks = made.walk is not None  # the zeros that every walk's first turn finds have a slot of their own
    shapes = {
        "queries": (made.groups * (AHEAD if made.gathered else 1), GROUP_ROWS, made.dims.size),
        "keys_ring": (stages, made.keys.size, made.dims.size),
        "values_ring": (stages + walks, made.keys.size, made.values.size),
    }
    lines = [f"    {name} = {_tiles(made.dtype, shape)}" for name, shape in shapes.items()]
    for name in BARRIERS:
        arrivals, slots = made.groups if name == "free" else 1, 1 if name == "queries_full" else stages
        shape = "[1]" if name == "queries_full" else f"[{slots}, 1]"
        lines.append(f"    {name} = tl.allocate_shared_memory(tl.int64, {shape}, mbarrier.MBarrierLayout())")
        each = [name] if name == "queries_full" else [f"{name}.index({slot})" for slot in range(slots)]
        lines += [f"    mbarrier.init({barrier}, {arrivals})" for barrier in each]
    return [*lines, *_late(made), *_zeros(made, stages if walks else 0)]


def names(made: Roles) -> tuple[str, ...]:
    """The tiles and barriers of a kernel."""
    return (*TILES, *BARRIERS, *(LATE if made.late else ()))


def _late(made: Roles) -> list[str]:
    """A tile of each such load for each group."""
    if not made.late:
        return []
    tiles, barrier = LATE
    shape = (len(made.late) * made.groups, GROUP_ROWS, made.values.size)
    return [
        f"    {tiles} = {_tiles(made.late[0].dtype, shape)}",
        f"    {barrier} = tl.allocate_shared_memory(tl.int64, [1], mbarrier.MBarrierLayout())",
        f"    mbarrier.init({barrier}, 1)",
    ]


def _zeros(made: Roles, slot: int) -> list[str]:
    """The values that the first turn of all finds, as if they had been loaded."""
    across = made.values.size // 8
    layout = f"tl.BlockedLayout([1, 8], [{32 // across}, {across}], [{GROUP_WARPS}, 1], [1, 0])"
    shape = f"[{made.keys.size}, {made.values.size}]"
    return [
        f"    values_ring.index({slot}).store(tl.full({shape}, 0.0, {dtype_name(made.dtype)}, {layout}))",
        "    hopper.fence_async_shared()",
        "    mbarrier.arrive(values_full.index(0), count=1)",
    ]


def _tiles(dtype: str, shape: tuple[int, int, int]) -> str:
    layout = f"tl.NVMMASharedLayout({min(MOST_SWIZZLED, 2 * shape[-1])}, 16, 2)"
    return f"tl.allocate_shared_memory({dtype_name(dtype)}, {list(shape)}, {layout})"
