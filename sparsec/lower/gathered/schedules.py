"""The class of gathered attention: its loop orders, which of them a schedule asks for, and what is good untuned.

Query-outer fills a tensor-core tile only where 16 heads or more share a list; tile-union reads a chunk once for all
neighbouring tokens that chose it, after a kernel that finds the union of their lists; key-outer reads it once for
tokens from anywhere, after three kernels that turn the lists around, and merges partial outputs.
"""

from __future__ import annotations

from dataclasses import replace

from sparsec.lower.gathered import box_merge, chunks, flat, key_outer, partials, slot_merge, tile_union, union_list
from sparsec.lower.gathered import gpu as gathered_gpu
from sparsec.lower.gathered import query_outer as gathered
from sparsec.lower.inverse import index as inverse
from sparsec.lower.inverse import steps as inverse_steps
from sparsec.lower.lowered import Lowered, Step
from sparsec.plan.specs import GatheredAttention
from sparsec.tile.schedule import Schedule, ScheduleError

ORDERS = ("query_outer", "tile_union", "key_outer")
Choices = dict[str, tuple[object, ...]]


def lower(spec: GatheredAttention, schedule: Schedule) -> Lowered:
    """The programs of a loop order; ScheduleError in one sentence where the schedule is illegal."""
    check(spec, schedule)
    if schedule.order == "query_outer":
        return Lowered((Step(gathered.lower(spec, schedule), schedule),))
    if schedule.order == "key_outer":
        return _key_outer(spec, schedule)
    listing = Step(union_list.lower(spec, schedule), replace(schedule, warps=1, stages=1, descriptors=False))
    steps = (listing, Step(tile_union.lower(spec, schedule), schedule))
    return Lowered(steps, union_list.scratch(spec, schedule), union_list.params(spec, schedule))


def _key_outer(spec: GatheredAttention, schedule: Schedule) -> Lowered:
    tally, offsets, fill = inverse_steps.programs(spec, schedule)
    wide = replace(schedule, warps=4, stages=1, registers=0, descriptors=False, producer=False)
    narrow = replace(wide, warps=1)
    index = (Step(tally, narrow), Step(offsets, wide), Step(fill, narrow))
    chosen = [Step(key_outer.lower(spec, schedule), schedule)]
    if inverse.inverse(spec, schedule).doubt is not None:
        chosen.append(Step(key_outer.lower(spec, schedule, again=True), replace(schedule, maximum=True)))
    steps = (*index, *chosen, _merge(spec, schedule))
    buffers = (*inverse.scratch(spec, schedule), *partials.scratch(spec, schedule))
    params = (*inverse.params(spec, schedule), *partials.params(spec))
    return Lowered(steps, buffers, params, inverse.limits(spec, schedule))


def _merge(spec: GatheredAttention, before: Schedule) -> Step:
    if box_merge.wanted(spec, before):
        own = box_merge.schedule(before)
        return Step(box_merge.lower(spec, own), own)
    own = slot_merge.schedule(spec, before)
    return Step(slot_merge.lower(spec, own), own)


def check(spec: GatheredAttention, schedule: Schedule) -> None:
    """Refuse a schedule that cannot carry this spec out."""
    rows, block = schedule.rows, schedule.block
    if schedule.order not in ORDERS:
        raise ScheduleError(f"gathered attention has no loop order {schedule.order!r}; use {', '.join(ORDERS)}")
    if schedule.value_block and spec.value_dim % schedule.value_block:
        raise ScheduleError(f"value_block {schedule.value_block} does not divide the value dim {spec.value_dim}")
    odd = rows & (rows - 1) and not (schedule.order == "key_outer" and schedule.has_roles and rows % 64 == 0)
    if schedule.split_dims and (rows < 16 or block < 16 or odd or block & (block - 1)):
        raise ScheduleError(f"{rows} rows x {block} keys do not fill tensor-core tiles: powers of two from 16 on do")
    if schedule.order == "tile_union":
        tile_union.check(spec, schedule)
    if schedule.order == "key_outer":
        key_outer.check(spec, schedule)


def default(spec: GatheredAttention, target: str) -> Schedule:
    """On a CPU query-outer. On a GPU key-outer for large chunks that few heads share, query-outer for tiny chunks,
    tile-union elsewhere."""
    if not target.startswith("triton"):
        return Schedule(rows=chunks.sharing(spec), block=_key_block(spec, 64), lanes=("n", "e"), split_dims=False)
    return gathered_gpu.default(spec, target)


def _key_block(spec: GatheredAttention, most_keys: int) -> int:
    """The largest divisor of the chunk up to a limit; several chunks per tile where they are tiny."""
    if spec.per == "joint" and spec.chunk < 16:
        return spec.chunk * (16 // spec.chunk)
    return max(d for d in range(1, min(spec.chunk, most_keys) + 1) if spec.chunk % d == 0)


def space(spec: GatheredAttention, target: str) -> Choices:
    """Loop order, tile sizes, value blocks, warps, stages, registers and whether a maximum runs along.

    Key-outer writes a partial output per head and choice: where many heads share a list that is more traffic than
    reading its chunks for every token (12.9 ms to 7.8 for 64 heads, 16 chosen blocks of 64, T32768 on an H100).
    """
    share = chunks.sharing(spec)
    if not target.startswith("triton"):
        blocks = tuple(b for b in (8, 16, 32, 64) if spec.chunk % b == 0) or (_key_block(spec, 64),)
        return {"order": ("query_outer",), "rows": (share,), "block": blocks}
    if spec.chunk < 16:
        return {
            "order": ("query_outer",),
            "rows": (gathered_gpu.row_tile(share),),
            "block": (32, 64, 128),
            "warps": (2, 4, 8),
        }
    blocks = tuple(b for b in (16, 32, 64, 128) if spec.chunk % b == 0)
    rows = tuple(sorted({gathered_gpu.row_tile(share), 32, 64, 128}))
    few = share < gathered_gpu.FEW
    walks = few and key_outer.may_walk(spec, target)
    rows = (*rows, 192) if walks else rows
    return {
        "order": ORDERS if few else ORDERS[:2],
        "rows": rows,
        "block": blocks,
        "value_block": tuple(b for b in (0, 64) if not b or (spec.value_dim % b == 0 and b < spec.value_dim)),
        "phases": ("branch", "split"),
        "descriptors": (False, True),
        "producer": (False, True) if walks else (False,),
        "warps": (1, 2, 4, 8, 12) if walks else (1, 2, 4, 8),
        "stages": (1, 2, 3, 4),
        "registers": (0, 96, 128, 168) if walks else (0, 96, 128),
        "peel": (False, True) if walks else (False,),
        "late": (False, True) if walks else (False,),
        "merge": ("alike", "roles", "walk") if walks and box_merge.fits(spec) else ("alike",),
        "maximum": (True, False) if flat.fits(spec) and (few or spec.per == "joint") else (True,),
    }
