"""Halves of a joint plan that leave work to one another: what a forward has sorted and solved, a backward reads.

The backward of a scan works out again much of what its forward did. Once schedules are chosen, programs are compared
over both halves, as they are within one (``sparsec.lower.across``), and what the forward made is saved where the
backward would have made the same. That takes memory, so a schedule says it (``Schedule.keep``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparsec.plan.states.fenwick_specs import LadderGrad
from sparsec.plan.states.scan_specs import ScanGrad
from sparsec.runtime.joint import Joint, Whole, halved
from sparsec.runtime.known import MOST_PLANS, room

if TYPE_CHECKING:
    from sparsec.lower.lowered import Lowered
    from sparsec.plan.plan import Plan
    from sparsec.runtime.compiled import Compiled
    from sparsec.tile.schedule import Schedule


class Closer:
    """Joint plans as they are run under some schedules, each worked out once."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled
        self._known: dict[tuple[object, ...], tuple[Joint, Joint]] = {}

    def __call__(self, halves: Joint, dims: Mapping[str, int]) -> Joint:
        """The halves with less to launch and to move, or those given."""
        schedules = {k.name: self.compiled.schedule(k, dims) for k in halves.whole.plan.kernels}
        if not _keeps(halves, schedules):
            return halves
        key = (id(halves), *schedules.values())
        if key not in self._known:
            room(self._known, MOST_PLANS)
            found = self.compiled.together(halves.whole.plan, schedules, whole=True)
            made = None if found is None else self._halved(halves, *found, schedules)
            self._known[key] = halves, made or halves  # the halves keep their id their own
        return self._known[key][1]

    def _halved(
        self, halves: Joint, plan: Plan, lowered: Mapping[str, Lowered], schedules: Mapping[str, Schedule]
    ) -> Joint | None:
        """The halves of the plan, whose programs are these; None where the forward would need the backward."""
        own = halves.whole
        made = halved(Whole(plan, own.inputs, own.seeds, own.gradients, own.dtype), len(own.seeds))
        if not {b.name for b in made.split.forward.buffers if b.role == "input"} <= {*own.inputs}:
            return None
        for half in (made.split.forward, made.split.backward):
            self.compiled.together.fix(half, {k.name: lowered[k.name] for k in half.kernels}, schedules)
        return made


def _keeps(halves: Joint, schedules: Mapping[str, Schedule]) -> bool:
    """Whether every scan of the backward reads what the forward made of its chunks."""
    scans = [schedules[k.name] for k in halves.split.backward.kernels if isinstance(k.spec, ScanGrad | LadderGrad)]
    return bool(scans) and all(s.keep and s.order == "chunk" for s in scans)
