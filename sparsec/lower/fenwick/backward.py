"""The backward of a ladder: blocks again, what readers ask of them, down to chunks, then all chunks side by side."""

from __future__ import annotations

from dataclasses import replace

from sparsec.lower.fenwick import asked, descend, far, sharing, through, tokens, tokens_delta, walk
from sparsec.lower.fenwick.back import Back
from sparsec.lower.fenwick.forward import blocks, narrow, rungs_of
from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scan.chunk_parts import power
from sparsec.plan.fenwick_specs import LadderGrad
from sparsec.tile.schedule import Schedule


def lower(spec: LadderGrad, schedule: Schedule) -> Lowered:
    """What the forward read, and the gradient of its outputs ``[B,N,H,DV]`` -> all that is asked for.

    Where heads share queries, keys or states, each query head gets its own and gradients are added up. Raises
    ScheduleError where there is no such form.
    """
    inner = sharing.apart(spec)
    found = _apart(inner, schedule)
    return found if inner is spec else sharing.around(spec, found, schedule)


def _apart(spec: LadderGrad, schedule: Schedule) -> Lowered:
    """Of as many states as query heads."""
    b = Back(spec, rungs_of(spec.forward, schedule, spec.name))
    steps = blocks(b.rungs, schedule, apart=True) + (_down(b, schedule) if b.rungs.outer else [])
    if b.own.delta:
        made = [tokens_delta.lower_values(_narrow(b, 64))]
        made += [tokens_delta.lower_parts(_narrow(b, 64))] * bool(b.rungs.outer)
        made.append(tokens_delta.lower(b))
    else:
        made = [tokens.lower(_narrow(b, 32))]
    steps += [Step(program, replace(schedule, warps=8, stages=1)) for program in made]
    if b.rungs.outer and b.learns_decay:
        steps.append(Step(through.lower(b), replace(schedule, warps=1, stages=1)))
    scratch = (*b.rungs.scratch(), *b.scratch())
    return Lowered(tuple(steps), tuple(as_scratch(t) for t in scratch), b.rungs.params())


def _narrow(b: Back, columns: int) -> Back:
    """With fewer columns at once, for a program that holds much else."""
    return replace(b, rungs=narrow(b.rungs, columns))


def _columns(b: Back, columns: int) -> Back:
    """With so many columns at once."""
    own = b.own
    few = min(columns, power(own.writes.cols))
    return replace(b, rungs=replace(b.rungs, own=replace(own, schedule=replace(own.schedule, value_block=few))))


def _down(b: Back, schedule: Schedule) -> list[Step]:
    """The gradients of all blocks, the smallest last."""
    wide = replace(schedule, warps=8, stages=1)
    walks = [walk.lower_out(b), walk.lower_back(b)] if b.matrices else [far.lower(_columns(b, 128))]
    steps = [Step(program, wide) for program in walks]
    apart, read = _narrow(b, 64), replace(schedule, warps=4, stages=3)  # a chain of loads: the next are on their way
    steps.append(Step(asked.lower_reads(apart), read))
    steps += [Step(asked.lower_passes(apart), read)] * b.matrices
    for level in range(b.rungs.outer - 1, b.rungs.lowest - 1, -1):
        steps.append(Step(descend.lower_states(b, level), schedule))
        steps += [Step(descend.lower_moves(b, level), schedule)] * b.matrices
    return steps
