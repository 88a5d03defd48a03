"""The programs of a mixture of masses of keys: every candidate's scores, then the weights of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scan.masses import level, scores, sums, weights
from sparsec.lower.scan.masses.level import Level, Prepared
from sparsec.lower.scan.sorted import gather
from sparsec.lower.scan.sorted import lower as sorting
from sparsec.plan.states.mixture_specs import StateMixture
from sparsec.plan.states.scan_specs import Operand
from sparsec.tile.language import Tensor
from sparsec.tile.schedule import Schedule

ROWS = 32
"""Tokens of a program that weighs."""


def lower(spec: StateMixture, schedule: Schedule) -> Lowered:
    """q ``[B,N,H,D]`` and what tokens write -> weights ``[B,N,H,C]``."""
    made = list[Lowered]()
    read = list[weights.Numbers]()
    for number, ahead in enumerate(levels(spec, schedule)):
        own = ahead.level
        program = scores.lower(own, spec.mixture.scale)
        steps = [*masses(own, schedule), Step(program, level.small(schedule), also=_sorts(own, schedule, 1))]
        made.append(ahead.lowered(steps, [*held(own), own.per_query("scores")], str(number)))
        read.append(weights.numbers(ahead, own.per_query("scores"), str(number)))
    last = replace(level.small(schedule), warps=4, rows=ROWS)
    return joined(made, [Step(weights.lower(spec.mixture, read, last), last)])


def levels(spec: StateMixture, schedule: Schedule) -> list[Prepared]:
    """The candidates in turn."""
    m = spec.mixture
    return [level.prepared(scan, Operand(m.q, m.dtype), m.heads, schedule, whole=False) for scan in spec.masses]


def masses(own: Level, schedule: Schedule) -> list[Step]:
    """What each chunk adds, and the mass before each."""
    small, also = level.small(schedule), _sorts(own, schedule, 0)
    if also:
        also = (*also, Step(sums.lower_leaves(replace(own, brought=None)), small))
    starts = sums.lower_starts(own, own.sums, own.starts, "befores")
    return [Step(sums.lower_leaves(own), small, also=also), Step(starts, replace(small, warps=4))]


def _sorts(own: Level, schedule: Schedule, which: int) -> tuple[Step, ...]:
    """What would sort keys (0) or queries (1), if the level's programs do."""
    if own.brought is None or own.own.runs is None:
        return ()
    (w, *moved), plain = own.brought, sorting.moving(schedule)
    return (Step(gather.lower(own.own.runs, w, moved[which], plain), plain),)


def held(own: Level) -> list[Tensor]:
    """What they leave to others."""
    return [own.sums, own.starts]


def joined(made: Sequence[Lowered], last: Sequence[Step]) -> Lowered:
    """The programs of all candidates, and those that read several."""
    steps = [step for x in made for step in x.steps]
    scratch = tuple(s for x in made for s in x.scratch)
    return Lowered((*steps, *last), scratch, tuple(p for x in made for p in x.params))


def default(spec: object, target: str) -> Schedule:
    """Chunks of 64 tokens."""
    return Schedule(order="chunk", rows=64, warps=4, stages=1)


def space(spec: object, target: str) -> dict[str, tuple[object, ...]]:
    """Warps."""
    return {"warps": (2, 4, 8)}
