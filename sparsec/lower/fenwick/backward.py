"""The backward of a ladder: blocks again, what readers ask of them, down to chunks, then all chunks side by side."""

from __future__ import annotations

from dataclasses import replace

from sparsec.lower.fenwick import (
    asked,
    descend,
    far,
    leaf,
    parts_delta,
    sharing,
    through,
    tokens,
    tokens_delta,
    values_delta,
    walk,
)
from sparsec.lower.fenwick.back import Back
from sparsec.lower.fenwick.forward import blocks, of_blocks, rungs_of
from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scan.chunk.parts import power
from sparsec.plan.states.fenwick_specs import LadderGrad
from sparsec.tile.schedule import Schedule


def lower(spec: LadderGrad, schedule: Schedule) -> Lowered:
    """What the forward read, and the gradient of its outputs ``[B,N,H,DV]`` -> all that is asked for.

    Where heads share queries, keys or states, each query head gets its own and gradients are added up. Raises
    ScheduleError where there is no such form.
    """
    inner = sharing.apart(spec)
    if inner is spec:
        return _apart(spec, schedule)
    return sharing.around(spec, _apart(inner, replace(schedule, keep=False)), schedule)


def _apart(spec: LadderGrad, schedule: Schedule) -> Lowered:
    """Of as many states as query heads."""
    b = Back(spec, rungs_of(spec.forward, schedule, spec.name))
    steps = _blocks(b, schedule) + (_down(b, schedule) if b.rungs.outer else [])
    steps += _tokens(b, schedule)
    if b.rungs.outer and b.learns_decay:
        steps.append(Step(through.lower(b), replace(schedule, warps=1, stages=1)))
    scratch = (*b.rungs.scratch(), *b.scratch())
    return Lowered(tuple(steps), tuple(as_scratch(t) for t in scratch), b.rungs.params())


def _blocks(b: Back, schedule: Schedule) -> list[Step]:
    """All blocks again; with ``keep`` by the forward's own programs, which a training step runs once."""
    own = schedule.keep and b.matrices
    seconds = [Step(leaf.lower_seconds(b.rungs), schedule)] * (own and b.rungs.outer > 1)
    return blocks(b.rungs, schedule, apart=not own) + seconds


def _tokens(b: Back, schedule: Schedule) -> list[Step]:
    """All gradients per token; few columns at once, since such a program holds much else."""
    wide = replace(schedule, warps=8, stages=2)
    if not b.own.delta:
        return [Step(tokens.lower(_columns(b, 32)), wide)]
    steps = [Step(values_delta.lower(_columns(b, 64)), replace(wide, stages=3))]
    if b.rungs.outer:
        steps.append(Step(parts_delta.lower(_columns(b, 32)), replace(wide, warps=4, stages=3)))
    return [*steps, Step(tokens_delta.lower(_columns(b, 64)), replace(wide, stages=1))]


def _columns(b: Back, columns: int) -> Back:
    """With so many value columns at once, or all."""
    own = b.own
    few = replace(own.schedule, value_block=min(columns, power(own.writes.cols)))
    return replace(b, rungs=replace(b.rungs, own=replace(own, schedule=few)))


def _down(b: Back, schedule: Schedule) -> list[Step]:
    """The gradients of all blocks, the smallest last."""
    whole, wide = _columns(b, 128), replace(schedule, warps=8, stages=2)
    if b.matrices:
        small = replace(wide, warps=4)  # two fit a processor; the second's loads leave room for one stage
        steps = [Step(walk.lower_out(whole), small), Step(walk.lower_back(whole), replace(small, stages=1))]
    else:
        steps = [Step(far.lower(whole), wide)]
    apart, read = _columns(b, 64), replace(schedule, warps=4, stages=4)  # a chain of loads: the next are on their way
    steps.append(Step(asked.lower_reads(apart), read))
    steps += [Step(asked.lower_passes(apart), read)] * b.matrices
    products = of_blocks(b.rungs, schedule)
    for level in range(b.rungs.outer - 1, b.rungs.lowest - 1, -1):
        steps.append(Step(descend.lower_states(b, level), products))
        steps += [Step(descend.lower_moves(b, level), products)] * b.matrices
    return steps
