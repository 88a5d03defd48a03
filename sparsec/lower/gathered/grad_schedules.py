"""The classes of the backward of gathered attention: their programs, and what is good untuned."""

from __future__ import annotations

from dataclasses import replace

from sparsec.lower import descriptors
from sparsec.lower.gathered import chunks, grad_walk, query_outer, share_sum, tile_union, union_list, weight_fold
from sparsec.lower.gathered import grad as gathered_grad
from sparsec.lower.gathered import grad_kv as gathered_grad_kv
from sparsec.lower.gathered import grad_q_keys as gathered_grad_q_keys
from sparsec.lower.gathered import grad_union as gathered_grad_union
from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.inverse.turned import turned
from sparsec.lower.lowered import Lowered, Scratch, Step
from sparsec.plan.grad_specs import GatheredGradKV, GatheredGradQ
from sparsec.plan.specs import GatheredAttention
from sparsec.tile.language import Tensor
from sparsec.tile.schedule import Schedule, ScheduleError

Choices = dict[str, tuple[object, ...]]


def lower_q(spec: GatheredGradQ, schedule: Schedule) -> Lowered:
    """Gradients of queries and weights; ScheduleError in one sentence where the schedule is illegal."""
    check(spec.forward, schedule, ("query_outer", "tile_union", "key_outer"))
    if schedule.order == "key_outer":
        return gathered_grad_q_keys.lower(spec, schedule)
    united = schedule.order == "tile_union"
    small = replace(schedule, rows=16, warps=4, stages=1, registers=0, descriptors=False)
    steps: list[Step] = []
    buffers: list[Scratch] = []
    if united:
        tile_union.check(spec.forward, schedule)
        steps.append(Step(union_list.lower(gathered_grad_union.listing(spec), schedule), replace(small, warps=1)))
        buffers += union_list.scratch(gathered_grad_union.listing(spec), schedule)
    kernel = gathered_grad_union.lower if united else gathered_grad.lower
    if spec.grad_weights is None:
        steps.append(Step(kernel(spec, schedule, None), schedule))
    else:
        lists = chunks.lists(spec.forward)
        found = spec.forward.heads if united else query_outer.tiles(spec.forward, schedule)
        name = spec.grad_weights if found == lists else f"{spec.name}_parts"
        target = Tensor(name, "float32", ("B", "TQ", found, spec.forward.slots))
        steps.append(Step(kernel(spec, schedule, target), schedule))
        if found != lists:
            steps.append(Step(weight_fold.lower(spec, target, small), small))
            buffers.append(as_scratch(target))
    return Lowered(tuple(steps), tuple(buffers), union_list.params(spec.forward, schedule) if united else ())


def lower_kv(spec: GatheredGradKV, schedule: Schedule) -> Lowered:
    """Gradients of keys and values; ScheduleError in one sentence where the schedule is illegal."""
    check(spec.forward, schedule, ("key_outer", "apart"))
    share = chunks.sharing(spec.forward)
    if schedule.rows < share:
        raise ScheduleError(f"{schedule.rows} rows do not hold the {share} heads that share a list of chunks")
    wide = replace(schedule, warps=4, stages=1, registers=0, descriptors=False)
    index = turned(grad_walk.forward(spec), schedule, wide, schedule.rows // share, schedule.splits)
    main = [Step(program, schedule) for program in gathered_grad_kv.programs(spec, schedule)]
    steps = (*index.steps, *main, Step(share_sum.lower(spec, wide), wide))
    parts = tuple(as_scratch(goal.partial) for goal in gathered_grad_kv.targets(spec, schedule))
    return Lowered(steps, (*index.scratch, *parts), index.params, index.limits)


def check(forward: GatheredAttention, schedule: Schedule, orders: tuple[str, ...]) -> None:
    """Refuse a schedule that cannot carry this spec out."""
    rows, block = schedule.rows, schedule.block
    if schedule.order not in orders:
        known = ", ".join(orders)
        raise ScheduleError(f"this gradient of gathered attention has no loop order {schedule.order!r}; use {known}")
    if schedule.value_block:
        raise ScheduleError(f"value_block {schedule.value_block}: a backward kernel reads whole rows; use 0")
    if schedule.split_dims and (rows < 16 or block < 16 or rows & (rows - 1) or block & (block - 1)):
        raise ScheduleError(f"{rows} rows x {block} keys do not fill tensor-core tiles: powers of two from 16 on do")


def default_q(spec: GatheredGradQ, target: str) -> Schedule:
    """On a GPU tile-union, as forward, but for tiny chunks; elsewhere all heads that share a list."""
    share, dims = chunks.sharing(spec.forward), (spec.forward.head_dim, spec.forward.value_dim)
    if not target.startswith("triton"):
        return Schedule(rows=share, block=key_block(spec.forward), lanes=("n", "d", "e"), split_dims=False)
    rows, block = min(64, max(16, 1 << (share - 1).bit_length())), tensor_block(spec.forward)
    if spec.forward.dtype == "float32":
        order = "query_outer" if spec.forward.chunk < 16 else "tile_union"
        return Schedule(order, max(16, 1 << (share - 1).bit_length()), min(block, 32), warps=4, stages=2)
    if spec.forward.chunk < 16:
        return Schedule(rows=rows, block=block, warps=4, stages=2)
    rows = max(64, 1 << (share - 1).bit_length())
    boxes = descriptors.pay(target, spec.forward.dtype, *dims)
    warps = 8 if rows > 64 or target == "triton:sm_80" else 4
    return Schedule("tile_union", rows, block, warps=warps, stages=2, descriptors=boxes)


def default_kv(spec: GatheredGradKV, target: str) -> Schedule:
    """32 rows, or as many as hold the heads that share a list, and a chunk's keys up to 64 at a time.

    With 64 rows head dims of 128 spilled, and those of 64 left room for fewer programs. Eight warps share 256 registers
    a lane on AMD, and did not hold what four do. On Hopper four warps of 255 registers took 7.1 ms where eight took
    18.5, the more programs at a time; few heads of keys need shorter shares (4.7 ms became 0.8). Three stages there
    have a turn's queries under way during the one before: 6.1 ms became 5.1, heads of 64 2.1 became 1.75.
    """
    share, forward = chunks.sharing(spec.forward), spec.forward
    if not target.startswith("triton"):
        block = forward.chunk if forward.chunk <= 64 else key_block(forward)
        rows = share * max(1, 32 // share)
        return Schedule("key_outer", rows=rows, block=block, lanes=("d", "e", "n"), split_dims=False)
    if forward.dtype == "float32":
        return _single(spec)
    rows, block = max(32, 1 << (share - 1).bit_length()), whole_block(forward)
    widest = max(forward.head_dim, forward.value_dim, block)
    narrow = forward.per == "joint" and rows == 32 and widest <= 128 and target == "triton:sm_90"
    wide = widest > 64 or target == "triton:sm_100"
    warps = 8 if wide and not narrow and not target.startswith("triton:gfx") else 4
    stages = 3 if narrow and share >= 8 else 2
    return Schedule("key_outer", rows, block, warps=warps, stages=stages, splits=max(1, 4 // forward.kv_heads))


def _single(spec: GatheredGradKV) -> Schedule:
    """fp32: small tiles; a chunk with a softmax of its own in one piece, since reading it twice spilled."""
    rows, block = max(16, 1 << (chunks.sharing(spec.forward) - 1).bit_length()), whole_block(spec.forward)
    if spec.forward.per == "chunk":
        return Schedule("key_outer", rows, block, warps=8, stages=1)
    return Schedule("key_outer", rows, min(block, 32), warps=4, stages=2)


def whole_block(forward: GatheredAttention) -> int:
    """As ``tensor_block``; a chunk that one tile of 128 keys holds is not read in parts."""
    if forward.per == "chunk" and 64 < forward.chunk <= 128:
        return 128
    return tensor_block(forward) if forward.chunk >= 16 else 16


def space_kv(spec: GatheredGradKV, target: str) -> Choices:
    """Tile sizes, warps and stages."""
    share, forward = chunks.sharing(spec.forward), spec.forward
    if not target.startswith("triton"):
        return {
            "rows": tuple(share * max(1, r // share) for r in (16, 32, 64)),
            "block": (default_kv(spec, target).block,),
        }
    even = tuple(b for b in (16, 32, 64, 128) if forward.chunk % b == 0)
    return {
        "order": ("key_outer", "apart") if spec.grad_k and spec.grad_v else ("key_outer",),
        "rows": tuple(r for r in (16, 32, 64, 128) if r >= share) or (default_kv(spec, target).rows,),
        "block": even or (whole_block(forward),),
        "warps": (4, 8),
        "stages": (1, 2, 3),
        "splits": (1, 2, 4, 8) if forward.kv_heads < 8 else (1,),
    }


def key_block(forward: GatheredAttention) -> int:
    """The largest divisor of the chunk up to 64; several chunks where they are tiny and share a softmax."""
    if forward.per == "joint" and forward.chunk < 16:
        return forward.chunk * (16 // forward.chunk)
    return max(d for d in range(1, min(forward.chunk, 64) + 1) if forward.chunk % d == 0)


def tensor_block(forward: GatheredAttention) -> int:
    """The largest power of two up to 64 that divides the chunk; else one that holds it, or 64."""
    even = [b for b in (16, 32, 64) if forward.chunk % b == 0]
    if even:
        return max(even)
    return (
        64 if forward.chunk < 16 and forward.per == "joint" else min(64, max(16, 1 << (forward.chunk - 1).bit_length()))
    )


def space_q(spec: GatheredGradQ, target: str) -> Choices:
    """Tile sizes, warps and stages."""
    share = chunks.sharing(spec.forward)
    if not target.startswith("triton"):
        blocks = tuple(b for b in (8, 16, 32, 64) if spec.forward.chunk % b == 0)
        return {"rows": (share,), "block": blocks or (key_block(spec.forward),)}
    even = tuple(b for b in (16, 32, 64, 128) if spec.forward.chunk % b == 0)
    least = min(64, max(16, 1 << (share - 1).bit_length()))
    orders = ("query_outer", "tile_union") if spec.forward.chunk >= 16 else ("query_outer",)
    from_keys = spec.forward.per == "joint" and spec.grad_q is not None and spec.forward.chunk >= 16
    return {
        "order": (*orders, "key_outer") if from_keys else orders,
        "rows": tuple(sorted({least, 32, 64, 128})) if spec.forward.chunk >= 16 else (least,),
        "block": even or (tensor_block(spec.forward),),
        "descriptors": (False, True),
        "warps": (1, 2, 4, 8),
        "stages": (1, 2, 3, 4),
    }
