"""The programs of a plan under the schedules of a compiled variant, with what kernels have in common done once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import finalize

from sparsec.lower.across.whole import shares, together
from sparsec.lower.lowered import Lowered
from sparsec.lower.registry import default, lower_kernel
from sparsec.plan.plan import Kernel, Plan
from sparsec.plan.states.scan_specs import Scan
from sparsec.plan.states.scored import scored
from sparsec.runtime.deterministic import refuse_additions
from sparsec.runtime.env import Env
from sparsec.runtime.known import MOST_PLANS, room
from sparsec.runtime.target import Target
from sparsec.tile.schedule import Schedule

if TYPE_CHECKING:
    from sparsec.runtime.compiled import Compiled
    from sparsec.runtime.kernel import BuiltKernel


Programs = tuple[Plan, dict[str, Lowered]]
"""A plan, and programs by kernel."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Programs of a plan that another plan relies on, and the schedules that they were made under."""

    lowered: Mapping[str, Lowered]
    schedules: Mapping[str, Schedule]

    def under(self, plan: Plan, schedules: Mapping[str, Schedule]) -> dict[str, Lowered]:
        """The programs, those of other schedules where a kernel shares nothing."""
        then = self.made_under(plan, schedules)
        new = [k for k in plan.kernels if then[k.name] != self.schedules[k.name]]
        return {**self.lowered, **{k.name: lower_kernel(k.spec, then[k.name]) for k in new}}

    def made_under(self, plan: Plan, schedules: Mapping[str, Schedule]) -> dict[str, Schedule]:
        """The schedules of those programs: of then, where a kernel shares something, else these."""
        return {k.name: self._of(k, schedules[k.name]) for k in plan.kernels}

    def _of(self, kernel: Kernel, schedule: Schedule) -> Schedule:
        own, before = self.lowered[kernel.name], self.schedules[kernel.name]
        if schedule == before or launched(own) != launched(lower_kernel(kernel.spec, before)):
            return before
        return schedule


class Together:
    """Plans whose kernels leave work to one another, each worked out once under the same schedules."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[Plan, Programs]] = {}
        self._fixed: dict[int, Fixed] = {}

    def __call__(self, plan: Plan, schedules: Mapping[str, Schedule], whole: bool = False) -> Programs | None:
        """The plan as it is run; None where its kernels have nothing in common, or shall work apart.

        Of a ``whole`` plan a backward's kernels have something in common with those of its forward.
        """
        if (fixed := self._fixed.get(id(plan))) is not None:
            return plan, fixed.under(plan, schedules)
        if Env().work_apart or not (whole or shares(plan, schedules)):
            return None
        key = (id(plan), *schedules.values())
        if key not in self._known:
            room(self._known, MOST_PLANS)
            self._known[key] = plan, together(plan, apart(plan, schedules))  # the plan keeps its id its own
        return self._known[key][1]

    def made_under(self, plan: Plan, schedules: Mapping[str, Schedule]) -> Mapping[str, Schedule]:
        """The schedules of a plan's programs: those of then, where another plan relies on what they leave."""
        fixed = self._fixed.get(id(plan))
        return schedules if fixed is None else fixed.made_under(plan, schedules)

    def fix(self, plan: Plan, lowered: Mapping[str, Lowered], schedules: Mapping[str, Schedule]) -> None:
        """Say what the programs of a plan are as long as it lives: another plan relies on what they leave."""
        self._fixed[id(plan)] = Fixed(lowered, schedules)
        finalize(plan, self._fixed.pop, id(plan), None)


def fitted(plan: Plan, target: Target) -> Plan:
    """A plan of dense calls as a target runs it best: without masses of keys where scans go chunk by chunk."""
    return scored(plan, lambda scan: _in_chunks(scan, target))


def _in_chunks(scan: Scan, target: Target) -> bool:
    return default(scan, target.name).order == "chunk"


def apart(plan: Plan, schedules: Mapping[str, Schedule]) -> dict[str, Lowered]:
    """The programs of every kernel by itself."""
    return {k.name: lower_kernel(k.spec, schedules[k.name]) for k in plan.kernels}


def launched(lowered: Lowered) -> tuple[object, ...]:
    """What tells programs of a kernel, and what they keep to themselves, from others under the same schedule."""
    own = tuple(s.name for s in lowered.scratch)
    return (own, *((step.program.name, step.program.tensors) for step in lowered.steps))


def programs(compiled: Compiled, plan: Plan, dims: Mapping[str, int]) -> Programs:
    """What a call of a plan launches."""
    schedules = {k.name: compiled.schedule(k, dims) for k in plan.kernels}
    return compiled.together(plan, schedules) or (plan, apart(plan, schedules))


def whole(compiled: Compiled, plan: Plan, dims: Mapping[str, int]) -> tuple[Plan, Mapping[str, int], list[BuiltKernel]]:
    """A plan as it is run, its dims and its built kernels."""
    schedules = {k.name: compiled.schedule(k, dims) for k in plan.kernels}
    plan, lowered = compiled.together(plan, schedules) or (plan, {})
    if compiled._route.deterministic():
        refuse_additions(plan, schedules, lowered)
    under = compiled.together.made_under(plan, schedules)
    return plan, dims, [compiled.built(k, dims, under[k.name], lowered.get(k.name)) for k in plan.kernels]
