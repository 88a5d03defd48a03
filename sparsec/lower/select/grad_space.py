"""Which schedules the backward of selectors can be carried out under, and what is good untuned."""

from __future__ import annotations

from sparsec.lower.select.chosen_grad import NEEDS_SCORES
from sparsec.lower.select.frame import sharing
from sparsec.plan.grad_specs import SelectorGradKeys, SelectorGradQ
from sparsec.plan.specs import Selector
from sparsec.tile.schedule import Schedule, ScheduleError

Choices = dict[str, tuple[object, ...]]


def check_q(spec: SelectorGradQ, schedule: Schedule) -> None:
    """Refuse a schedule that cannot carry this spec out."""
    own = spec.forward
    if spec.grad_q is not None or (own.weights in NEEDS_SCORES and own.scores_out is None):
        refuse(own)
    rows, block = schedule.rows, schedule.block
    if rows & (rows - 1) or block & (block - 1):
        raise ScheduleError(f"{rows} tokens x {block} slots are no tile: use powers of two")


def check_keys(spec: Selector, schedule: Schedule) -> None:
    """The same for the kernel of the keys."""
    refuse(spec)
    rows, share = schedule.rows, sharing(spec)
    if schedule.split_dims and rows & (rows - 1):
        raise ScheduleError(f"{rows} rows are no tile: use a power of two")
    if rows < share:
        raise ScheduleError(f"{rows} rows do not hold the {share} heads that share a list")


def refuse(spec: Selector) -> None:
    """Refuse selectors whose scores have no such gradient."""
    if spec.softmax or spec.pool is not None or spec.group == "max" or spec.cosine:
        raise ScheduleError("scores have a gradient where they are dots, summed or averaged over a group, and no other")


def scale(spec: Selector) -> float:
    """The factor of each head's product in a list's score."""
    return spec.scale / (sharing(spec) if spec.group == "mean" else 1)


def default_q(spec: SelectorGradQ, target: str) -> Schedule:
    """A whole list at a time where it has up to 32 slots, of as many tokens as 32 or 64 registers hold."""
    slots, dim = 1 << (spec.forward.slots - 1).bit_length(), spec.forward.dim
    if not target.startswith("triton"):
        return Schedule(rows=1, block=slots, lanes=("d",), split_dims=False)
    block = min(slots, 32)
    rows = max(1, 1 << (4096 // (block * dim)).bit_length() - 1) if block * dim <= 4096 else 1
    return Schedule(rows=rows, block=block, warps=4, stages=2)


def space_q(spec: SelectorGradQ, target: str) -> Choices:
    """Tokens and slots of a tile, and warps."""
    slots = 1 << (spec.forward.slots - 1).bit_length()
    if not target.startswith("triton"):
        return {"rows": (1, 2, 4), "block": (slots,)}
    return {
        "rows": (1, 2, 4, 8),
        "block": tuple(b for b in (4, 8, 16, 32) if b <= slots) or (slots,),
        "warps": (1, 2, 4, 8),
    }


def default_keys(spec: SelectorGradKeys, target: str) -> Schedule:
    """As many rows as 32 registers hold."""
    share, dim = sharing(spec.forward), spec.forward.dim
    if not target.startswith("triton"):
        return Schedule(rows=share * max(1, 8 // share), lanes=("d",), split_dims=False)
    rows = max(16, 1 << (4096 // dim).bit_length() - 1, 1 << (share - 1).bit_length())
    return Schedule(rows=rows, warps=4, stages=2)


def space_keys(spec: SelectorGradKeys, target: str) -> Choices:
    """Rows, warps and stages."""
    share = sharing(spec.forward)
    if not target.startswith("triton"):
        return {"rows": tuple(share * max(1, r // share) for r in (4, 8, 16))}
    rows = tuple(r for r in (16, 32, 64, 128) if r >= share)
    return {"rows": rows, "warps": (1, 2, 4, 8), "stages": (1, 2, 3)}
