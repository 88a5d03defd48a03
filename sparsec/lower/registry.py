"""Which file lowers which spec: the one table from kernels to schedule classes."""

from __future__ import annotations

from sparsec.lower import block_list, combine, gathered_class, selector, summarise, tiled, tiled_space
from sparsec.lower.lowered import Lowered, Step
from sparsec.plan.specs import BlockList, Combine, GatheredAttention, Selector, Spec, Summarise, TiledAttention
from sparsec.tile.schedule import Schedule

Choices = dict[str, tuple[object, ...]]


def lower_kernel(spec: Spec, schedule: Schedule) -> Lowered:
    """The programs of a kernel under a schedule; ScheduleError in one sentence where it is illegal."""
    if isinstance(spec, GatheredAttention):
        return gathered_class.lower(spec, schedule)
    if isinstance(spec, TiledAttention):
        return Lowered((Step(tiled.lower(spec, schedule), schedule),))
    if isinstance(spec, Selector):
        return Lowered((Step(selector.lower(spec, schedule), schedule),))
    if isinstance(spec, Summarise):
        return Lowered((Step(summarise.lower(spec, schedule), schedule),))
    if isinstance(spec, Combine):
        return Lowered((Step(combine.lower(spec, schedule), schedule),))
    assert isinstance(spec, BlockList)
    return Lowered((Step(block_list.lower(spec, schedule), schedule),))


def default(spec: Spec, target: str) -> Schedule:
    """A schedule that is good without tuning, for a target's name."""
    if isinstance(spec, TiledAttention):
        return tiled_space.default(spec, target)
    if isinstance(spec, GatheredAttention):
        return gathered_class.default(spec, target)
    if isinstance(spec, Selector):
        return selector.default(spec, target)
    if isinstance(spec, Summarise):
        return summarise.default(spec, target)
    if isinstance(spec, Combine):
        return combine.default(spec, target)
    return block_list.default(spec, target)


def space(spec: Spec, target: str) -> Choices:
    """The tuner's choices, by the name of a schedule's field."""
    if isinstance(spec, TiledAttention):
        return tiled_space.space(spec, target)
    if isinstance(spec, GatheredAttention):
        return gathered_class.space(spec, target)
    if isinstance(spec, Selector):
        return selector.space(spec, target)
    if isinstance(spec, Summarise):
        return summarise.space(spec, target)
    if isinstance(spec, Combine):
        return combine.space(spec, target)
    return {}
