"""Which file lowers which spec: the one table from kernels to schedule classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparsec.lower import block_list, combine, gathered_class, selector, summarise, tiled, tiled_space
from sparsec.lower.lowered import Lowered, Step
from sparsec.plan.grad_specs import GradSpec
from sparsec.plan.specs import BlockList, Combine, GatheredAttention, Selector, Spec, Summarise, TiledAttention
from sparsec.tile.language import Program
from sparsec.tile.schedule import Schedule

Choices = dict[str, tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class ScheduleClass:
    """How the kernels of one spec type are made: each function takes the spec and a schedule or a target's name."""

    lower: Callable[[Any, Schedule], Lowered]
    default: Callable[[Any, str], Schedule]
    space: Callable[[Any, str], Choices]


def _single(lower: Callable[[Any, Schedule], Program]) -> Callable[[Any, Schedule], Lowered]:
    """A lowering to one program."""
    return lambda spec, schedule: Lowered((Step(lower(spec, schedule), schedule),))


def _fixed(spec: object, target: str) -> Choices:
    """Nothing to choose."""
    return {}


CLASSES: dict[type, ScheduleClass] = {
    TiledAttention: ScheduleClass(_single(tiled.lower), tiled_space.default, tiled_space.space),
    GatheredAttention: ScheduleClass(gathered_class.lower, gathered_class.default, gathered_class.space),
    Selector: ScheduleClass(_single(selector.lower), selector.default, selector.space),
    Summarise: ScheduleClass(_single(summarise.lower), summarise.default, summarise.space),
    Combine: ScheduleClass(_single(combine.lower), combine.default, combine.space),
    BlockList: ScheduleClass(_single(block_list.lower), block_list.default, _fixed),
}


def lower_kernel(spec: Spec | GradSpec, schedule: Schedule) -> Lowered:
    """The programs of a kernel under a schedule; ScheduleError in one sentence where it is illegal."""
    return CLASSES[type(spec)].lower(spec, schedule)


def default(spec: Spec | GradSpec, target: str) -> Schedule:
    """A schedule that is good without tuning, for a target's name."""
    return CLASSES[type(spec)].default(spec, target)


def space(spec: Spec | GradSpec, target: str) -> Choices:
    """The tuner's choices, by the name of a schedule's field."""
    return CLASSES[type(spec)].space(spec, target)
