"""The forward of a ladder: sums and solves of chunks, their states, blocks of ever more chunks, outputs."""

from __future__ import annotations

from dataclasses import replace

from sparsec.lower.fenwick import climb, group, leaf, outputs
from sparsec.lower.fenwick.rungs import Rungs
from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scan.chunk import forward as chunk
from sparsec.lower.scan.chunk.form import checked
from sparsec.plan.states.fenwick import unchunked
from sparsec.plan.states.fenwick_specs import Ladder
from sparsec.tile.schedule import Schedule, ScheduleError


def rungs_of(spec: Ladder, schedule: Schedule, name: str = "") -> Rungs:
    """A ladder in chunks; ScheduleError where there is no such form."""
    if (sentence := unchunked(spec)) is not None:
        raise ScheduleError(f"{sentence} no form in chunks; use order 'token'")
    own = checked(name or spec.name, spec.writes, replace(schedule, splits=1))
    return Rungs(spec, own)


def lower(spec: Ladder, schedule: Schedule) -> Lowered:
    """q, k ``[B,N,H,D]``, v ``[B,N,H,DV]``, decay, beta ``[B,N,H]``, gate ``[B,N,H,L]`` -> outputs ``[B,N,H,DV]``.

    Raises ScheduleError where there is no such form.
    """
    rungs = rungs_of(spec, schedule)
    steps = [*blocks(rungs, schedule), Step(outputs.lower(rungs), schedule)]
    return Lowered(tuple(steps), tuple(as_scratch(t) for t in rungs.scratch()), rungs.params())


def blocks(rungs: Rungs, schedule: Schedule, apart: bool = False) -> list[Step]:
    """Sums, solves, and the states of all blocks; with ``apart``, the transitions of second chunks of two, too."""
    own = rungs.own
    steps = chunk.prepared(own)
    if not rungs.outer:
        return steps
    if own.delta:
        steps += [Step(leaf.lower_states(rungs), schedule), Step(leaf.lower_moves(rungs, apart), schedule)]
    else:
        steps.append(Step(group.lower(rungs), schedule))
    products = of_blocks(rungs, schedule)
    for level in range(rungs.first, rungs.outer - 1):
        steps.append(Step(climb.lower_states(rungs, level), products))
        steps += [Step(climb.lower_moves(rungs, level), products)] * own.delta
    return steps


def of_blocks(rungs: Rungs, schedule: Schedule) -> Schedule:
    """How programs on pairs of blocks run, which hold two matrices where they multiply them."""
    return replace(schedule, warps=8) if rungs.own.delta else schedule
