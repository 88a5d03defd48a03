"""The programs of a scan in this form, one after another."""

from __future__ import annotations

from dataclasses import replace

from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scan.chunk import segments as chunk_segments
from sparsec.lower.scan.chunk import units
from sparsec.lower.scan.chunk.parts import Chunked
from sparsec.lower.scan.keyed import outputs, prepare, solve
from sparsec.lower.scan.keyed.sides import Keyed
from sparsec.plan.states.scan_specs import Operand, Scan
from sparsec.tile.language import Tensor


def lower(spec: Scan, own: Chunked) -> Lowered:
    """q, k ``[B,N,H,D]``, v ``[B,N,H,DV]``, decays, beta, erase vectors -> outputs ``[B,N,H,DV]``, final states."""
    keyed = Keyed(own, spec.reads[0], solving=own.delta and own.writes.erase is None)
    within = own.runs is not None
    steps = prepared(keyed)
    steps += states(keyed, spec.final, within or spec.writes.initial is not None, within or spec.final is not None)
    kept = own.splits == 1 or within
    steps.append(Step(outputs.lower(keyed, spec.final if kept else None), own.schedule))
    return Lowered(tuple(steps), tuple(as_scratch(t) for t in scratch(keyed)), own.params())


def prepared(keyed: Keyed) -> list[Step]:
    """All that needs no state."""
    small = replace(keyed.own.schedule, warps=8, stages=1, descriptors=False, registers=0)
    steps = [Step(units.lower(keyed.own, *each), replace(small, warps=4)) for each in _units(keyed)]
    steps.append(Step(prepare.lower(keyed), replace(small, warps=4, stages=3)))
    if keyed.own.writes.decay is not None:
        steps.append(Step(prepare.lower_deep(keyed), small))
    if keyed.asking is not None:
        steps.append(Step(solve.lower(keyed), replace(small, warps=1)))
    if keyed.asking is not None and not keyed.solving:
        steps.append(Step(solve.lower_answers(keyed), replace(small, warps=4)))
    return steps


def _units(keyed: Keyed) -> list[tuple[Operand, int]]:
    """What is to have rows of length 1, with its heads."""
    return list(units.wanted(keyed.own, (keyed.read,)).values())


def states(keyed: Keyed, final: str | None, before: bool, after: bool) -> list[Step]:
    """What segments make of a state, and the states before them; nothing where there is one segment.

    ``before`` and ``after`` say whether anything passes the first and the last segment.
    """
    own = keyed.own
    if own.splits == 1:
        return []
    combined = replace(own.schedule, warps=8 if own.delta else 4, stages=2, registers=0)
    one = replace(keyed, own=chunk_segments.of_one_group(own))
    ends = Step(outputs.lower_ends(one, before, after), one.own.schedule)
    return [ends, Step(chunk_segments.lower_starts(own, final, before), combined)]


def scratch(keyed: Keyed) -> list[Tensor]:
    """The buffers between the programs."""
    own = keyed.own
    more = [own.ends, own.starts] + [own.fades] * own.fading
    return units.scratch(own, (keyed.read,)) + keyed.scratch() + more * (own.splits > 1)
