"""The programs of a scan's gradients in this form, one after another.

Nothing is kept from the forward but by ``Schedule.keep``. Memory is O(N): a state and its gradient per chunk, in the
dtype of the keys.
"""

from __future__ import annotations

from dataclasses import replace

from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scan.chunk import back_states as chunk_back_states
from sparsec.lower.scan.chunk.back import Back
from sparsec.lower.scan.keyed import back_states, back_tokens, forward
from sparsec.lower.scan.keyed.backward import KeyedBack
from sparsec.lower.scan.keyed.sides import Keyed


def lower(back: Back) -> Lowered:
    """What the forward read, gradients of outputs ``[B,N,H,DV]`` and of the final states -> all that is asked for."""
    own, schedule = back.own, back.own.schedule
    b = KeyedBack(back, Keyed(own, back.read))
    within = own.runs is not None
    given = back.spec.forward.writes.initial is not None or back.spec.grad_initial is not None
    steps = forward.prepared(b.keyed)
    steps += forward.states(b.keyed, None, within or given, within or back.spec.grad_final is not None)
    steps.append(Step(back_states.lower_states(b), schedule))
    if own.splits > 1:
        combined = replace(schedule, warps=8 if own.delta else 4, stages=2, registers=0)
        steps.append(Step(back_states.lower_grad_ends(b), schedule))
        steps.append(Step(chunk_back_states.lower_grad_starts(back), combined))
    steps.append(Step(back_states.lower_grad_states(b), schedule))
    last = replace(schedule, warps=8, stages=1)
    steps.append(Step(back_tokens.lower(b, False), last))
    if own.writes.decay is not None:
        steps.append(Step(back_tokens.lower(b, True), last))
    return Lowered(tuple(steps), tuple(as_scratch(t) for t in (*forward.scratch(b.keyed), *b.scratch())), own.params())
