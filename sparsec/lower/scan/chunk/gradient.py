"""Gradients of a chunked scan: states and their gradients at every chunk by two walks, then all chunks side by side.

Nothing is kept from the forward but by ``Schedule.keep``: decay sums, triangular solves and states are worked out
again. Memory is O(N): a state and its gradient per chunk, in the keys' dtype. No two programs add to one place.
"""

from __future__ import annotations

from dataclasses import replace

from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scan.cell import padded
from sparsec.lower.scan.chunk import back, back_states, back_tokens, forward, units
from sparsec.lower.scan.keyed import gradient
from sparsec.lower.scan.runs import Runs
from sparsec.plan.states.scan_specs import Operand, ScanGrad
from sparsec.tile.schedule import Schedule

WHOLE = 128
"""Value columns that the last program of products of halves takes at once: more do not fit a processor."""


def lower(spec: ScanGrad, schedule: Schedule, runs: Runs | None = None, unweighed: Operand | None = None) -> Lowered:
    """What the forward read, gradients of outputs ``[B,N,H,DV]`` and of the final states -> all that is asked for.

    Of ``unweighed`` sorted queries and the gradients of those with e that of e is made on the way.
    """
    b = back.back(spec, schedule, runs, unweighed)
    own = b.own
    if own.keyed:
        return gradient.lower(b)
    within, given = runs is not None, spec.forward.writes.initial is not None or spec.grad_initial is not None
    steps = forward.lengths(own, (b.read,)) + forward.prepared(own)
    steps += forward.states(own, None, within or given, within or spec.grad_final is not None)
    steps.append(Step(back_states.lower_states(b), schedule))
    if own.splits > 1:
        further = schedule if own.delta else forward.ahead(schedule)
        steps.append(Step(back_states.lower_grad_ends(b), further))
        steps.append(Step(back_states.lower_grad_starts(b), forward.combined(own)))
    steps.append(Step(back_states.lower_grad_states(b), schedule))
    steps.append(_per_token(b, schedule))
    held = (*units.scratch(own, (b.read,)), *forward.scratch(own), *b.scratch())
    return Lowered(tuple(steps), tuple(as_scratch(t) for t in held), own.params())


def _per_token(b: back.Back, schedule: Schedule) -> Step:
    """Every gradient of a token, chunk by forward.

    Products of halves take up to ``WHOLE`` value columns at once and no stages: their loop, pipelined, gave wrong
    gradients of values on Hopper (Triton 3.6).
    """
    last = replace(schedule, warps=8, stages=2, descriptors=schedule.descriptors and b.own.delta, whole_rows=True)
    w = b.own.writes
    if w.split:
        last = replace(last, value_block=min(WHOLE, padded(w.cols)), stages=1)
        b = back.back(b.spec, last, b.own.runs, b.unweighed)
    return Step(back_tokens.lower(b), last)
