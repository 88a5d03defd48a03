"""Shared memory of a kernel whose warps have roles: tiles, and barriers that say which slot is full or free."""

from __future__ import annotations

from sparsec.backends.triton.gluon.rings import APART, FULL
from sparsec.backends.triton.gluon.sums import Sums
from sparsec.backends.triton.gluon.turns import GROUP_ROWS, GROUP_WARPS, Roles
from sparsec.backends.triton.text import dtype_name

TILES = ("queries", "keys_ring", "values_ring")
LATE = ("late_rows", "late_full")
"""Rows beside the queries, and the barrier that says they are there; of kernels that have such rows."""

FREED = ("queries_free", "late_free")
"""Barriers that say that the groups of a walk are done with its queries and with such rows."""

AHEAD = 2
"""Tiles of queries that lie side by side where one is copied while another is read."""
BARRIERS = ("queries_full", *FULL, "free", *APART)
MOST_SWIZZLED = 128
"""Bytes of a row that are swizzled."""


def memory(made: Roles, peel: bool) -> list[str]:
    """The lines that allocate it and make its barriers ready; a slot is free when every group has said so."""
    walks, rings = made.walk is not None, made.rings
    own = walks and has_zeros(made, peel)  # the zeros that every walk's first turn finds have a slot of their own
    shapes = {
        "queries": (made.groups * (AHEAD if walks else 1), GROUP_ROWS, made.dims.size),
        "keys_ring": (rings.stages, made.keys.size, made.dims.size),
        "values_ring": (rings.values + own, made.keys.size, made.values.size),
    }
    lines = [f"    {name} = {_tiles(made.dtype, shape)}" for name, shape in shapes.items()]
    lines += _barrier("queries_full", 1, AHEAD if made.ahead else 0)
    for name in rings.barriers:
        lines += _barrier(name, made.groups if name in rings.freed else 1, rings.slots(name))
    zeros = _zeros(made, rings.values if own else 0) if has_zeros(made, peel) else []
    first = [] if rings.apart else ["    mbarrier.arrive(values_full.index(0), count=1)"]
    return [*lines, *_late(made), *_freed(made), *zeros, *first]


def sums_memory(made: Sums) -> list[str]:
    """The same for gradients: tiles that groups keep, and slots of a turn's tiles, full and free together."""
    slots = made.rings.stages * max(map(len, made.loops.values()))
    shapes = {
        "held": (len(made.held) * made.groups, GROUP_ROWS, made.dims.size),
        "ring": (slots, made.columns.size, made.dims.size),
    }
    lines = [f"    {name} = {_tiles(made.dtype, shape)}" for name, shape in shapes.items()]
    count = max(map(len, made.numbers.values()))
    plain = "tl.SwizzledSharedLayout(1, 1, 1, [0])"
    numbers = [made.rings.stages * max(count, 1), made.columns.size]
    lines += [f"    numbers = tl.allocate_shared_memory(tl.float32, {numbers}, {plain})"]
    lines += _barrier("held_full", 1, 0) + _barrier("full", 1 + (count > 0), made.rings.stages)
    return [*lines, *_barrier("free", made.groups, made.rings.stages)]


def has_zeros(made: Roles, peel: bool) -> bool:
    """Whether some turn finds no values before it: none does behind a first turn of its own that is always there."""
    return not (peel and all(turn.certain for turn in made.turns.values()))


def names(made: Roles) -> tuple[str, ...]:
    """The tiles and barriers of a kernel."""
    freed = FREED[: 1 + bool(made.late)] if made.ahead else ()
    return (*TILES, "queries_full", *made.rings.barriers, *(LATE if made.late else ()), *freed)


def _barrier(name: str, arrivals: int, slots: int) -> list[str]:
    """A barrier, or as many as there are slots."""
    each = [f"{name}.index({slot})" for slot in range(slots)] or [name]
    shape = f"[{slots}, 1]" if slots else "[1]"
    made = f"    {name} = tl.allocate_shared_memory(tl.int64, {shape}, mbarrier.MBarrierLayout())"
    return [made, *(f"    mbarrier.init({barrier}, {arrivals})" for barrier in each)]


def _freed(made: Roles) -> list[str]:
    """What a walk's groups arrive at."""
    if not made.ahead:
        return []
    queries, late = FREED
    return [*_barrier(queries, made.groups, AHEAD), *(_barrier(late, made.groups, 0) if made.late else [])]


def _late(made: Roles) -> list[str]:
    """A tile of each such load for each group."""
    if not made.late:
        return []
    tiles, barrier = LATE
    shape = (len(made.late) * made.groups, GROUP_ROWS, made.values.size)
    return [f"    {tiles} = {_tiles(made.late[0].dtype, shape)}", *_barrier(barrier, 1, 0)]


def _zeros(made: Roles, slot: int) -> list[str]:
    """The values that the first turn of all finds, as if they had been loaded."""
    across = made.values.size // 8
    layout = f"tl.BlockedLayout([1, 8], [{32 // across}, {across}], [{GROUP_WARPS}, 1], [1, 0])"
    shape = f"[{made.keys.size}, {made.values.size}]"
    return [
        f"    values_ring.index({slot}).store(tl.full({shape}, 0.0, {dtype_name(made.dtype)}, {layout}))",
        "    hopper.fence_async_shared()",
    ]


def _tiles(dtype: str, shape: tuple[int, int, int]) -> str:
    layout = f"tl.NVMMASharedLayout({min(MOST_SWIZZLED, 2 * shape[-1])}, 16, 2)"
    return f"tl.allocate_shared_memory({dtype_name(dtype)}, {list(shape)}, {layout})"
