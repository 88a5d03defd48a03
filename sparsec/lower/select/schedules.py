"""The class of selectors: by dots of summaries and pools of them, or by an indexer of single tokens."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.select import children, indexer, log_sums
from sparsec.lower.select import streaming as selector
from sparsec.plan.specs import Selector
from sparsec.tile.schedule import Schedule


def lower(spec: Selector, schedule: Schedule) -> Lowered:
    """The program of a selector; under the order "apart" log-sum-exps by a program of their own, before it."""
    choose = Step(_kind(spec).lower(spec, schedule), schedule)
    if schedule.order != "apart":
        return Lowered((choose,))
    sums = log_sums.schedule(spec, schedule)
    return Lowered((Step(log_sums.lower(spec, sums), sums), choose), (log_sums.scratch(spec),))


def default(spec: Selector, target: str) -> Schedule:
    """A schedule that is good without tuning."""
    found: Schedule = _kind(spec).default(spec, target)
    return found


def space(spec: Selector, target: str) -> dict[str, tuple[object, ...]]:
    """The tuner's choices."""
    found: dict[str, tuple[object, ...]] = _kind(spec).space(spec, target)
    return found


def known(spec: Selector, target: str) -> tuple[Schedule, ...]:
    """By rounds, 32 candidates at a time, which leave registers for more warps; sorted where rounds are the default.

    The children of a list where all candidates are the default, and on a CPU the other way round: few are quicker so.
    """
    choices, first = space(spec, target), default(spec, target)
    if not target.startswith("triton") and first.order == children.ORDER:
        return (selector.FLAT,)
    if target == "triton:sm_90" and children.fits(spec) and spec.head_weights is None:
        return _gathered(first)
    if target != "triton:sm_90" or "rounds" not in choices.get("order", ()):
        return ()
    found = replace(first, order="rounds", block=32, stages=1, descriptors=True in choices["descriptors"])
    other = replace(first, order="one_pass", rows=128, stages=3, descriptors=False)
    return (found, *([replace(found, warps=8)] if first.order != "rounds" else [other]))


def _kind(spec: Selector) -> ModuleType:
    return selector if spec.head_weights is None else indexer


def _gathered(first: Schedule) -> tuple[Schedule, ...]:
    """Eight rows or four with candidates of their own, whose keys are in registers."""
    own = replace(first, order=children.ORDER, stages=1, warps=4, descriptors=False)
    return replace(own, rows=8, block=8), replace(own, rows=8, block=16), replace(own, rows=4, block=32)
