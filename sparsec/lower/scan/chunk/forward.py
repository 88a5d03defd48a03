"""Scans chunk by chunk, for GPUs: products of tiles in a chunk, a state from one to the next, segments side by side.

Programs in turn: decays summed per chunk; (delta rules) triangular solves; with several segments, what each makes of a
state, and the states before them; outputs, which walk over each segment again from the right state. No state of a chunk
is ever stored. Chunks have ``rows`` tokens, programs ``value_block`` value columns, a sequence ``splits`` segments.
"""

from __future__ import annotations

from dataclasses import replace

from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scan.chunk import factors, form, gates, outputs, parts, segments, solve, strengths, units
from sparsec.lower.scan.chunk.parts import Chunked
from sparsec.lower.scan.keyed import forward
from sparsec.lower.scan.runs import Runs
from sparsec.plan.states.scan_specs import Read, Scan
from sparsec.tile.language import Tensor
from sparsec.tile.schedule import Schedule, ScheduleError

_FURTHEST = 3
"""Stages of a walk that pay."""


def refusal(spec: Scan, schedule: Schedule) -> str | None:
    """Why a scan has no chunk form, in a sentence; None where it has."""
    w = spec.writes
    if not spec.reads:
        return "nobody reads the states; use order 'token'"
    if any(read.turned for read in spec.reads):
        return "states that are read turned have no chunk form; use order 'token'"
    if w.sharers > 1 or any(read.sharers > 1 for read in spec.reads):
        return "heads that share keys or queries have no chunk form here; use order 'token'"
    if odd := [read.q for read in spec.reads if not form.meets(read.q, w)]:
        return f"{odd[0].name} is {odd[0].dtype}, keys are {w.k.dtype}; use order 'token'"
    if spec.surprise is not None and parts.needs_keyed(w):
        return f"{form.SURPRISED}; use order 'token'"
    if parts.needs_keyed(w) and (len(spec.reads) != 1 or spec.reads[0].heads != w.heads):
        return f"{form.OWN} have a chunk form with one read per state; use order 'token'"
    return form.refusal(w, schedule)


def lower(spec: Scan, schedule: Schedule, runs: Runs | None = None) -> Lowered:
    """q, k ``[B,N,·,D]``, v ``[B,N,HKV,DV]``, decay, beta ``[B,N,HKV]`` -> outputs ``[B,N,H,DV]``, final states.

    Of ``runs`` the tokens are those of all parts of a bank, one part after another, each from a new chunk on.

    Raises ScheduleError where there is no such form.
    """
    if sentence := refusal(spec, schedule):
        raise ScheduleError(sentence)
    own = Chunked(spec.name, spec.writes, schedule, runs)
    if own.keyed:
        return forward.lower(spec, own)
    within = runs is not None
    steps = lengths(own, spec.reads) + prepared(own)
    steps += states(own, spec.final, within or spec.writes.initial is not None, within or spec.final is not None)
    final = spec.final if own.splits == 1 or within else None
    surprise = spec.surprise
    for number, read in enumerate(spec.reads):
        program = outputs.lower(own, read, f"out{number}" if number else "", final, surprise)
        steps.append(Step(program, schedule))
        final = surprise = None
    return Lowered(
        tuple(steps), tuple(as_scratch(t) for t in (*units.scratch(own, spec.reads), *scratch(own))), own.params()
    )


def lengths(own: Chunked, reads: tuple[Read, ...]) -> list[Step]:
    """What brings rows to length 1 that are to have it."""
    small = replace(own.schedule, warps=4, stages=1, descriptors=False, registers=0)
    return [Step(units.lower(own, *each), small) for each in units.wanted(own, reads).values()]


def prepared(own: Chunked) -> list[Step]:
    """Decay sums and triangular solves."""
    small = replace(own.schedule, warps=1, stages=1, descriptors=False, registers=0)
    steps = [Step(gates.lower(own), small)] if own.decays or own.writes.beta is not None else []
    return steps + ([Step(solve.lower(own), small)] if own.delta else [])


def states(own: Chunked, final: str | None, before: bool, after: bool) -> list[Step]:
    """What segments make of a state, and the states before them; nothing where there is one segment.

    ``before`` and ``after`` say whether anything passes the first and the last segment.
    """
    if own.splits == 1:
        return []
    one = segments.of_one_group(own)
    return [
        Step(segments.lower_ends(one, before, after), ahead(one.schedule)),
        Step(segments.lower_starts(own, final, before), combined(own)),
    ]


def ahead(schedule: Schedule) -> Schedule:
    """Of walks that keep few tiles in shared memory: they load one chunk further ahead."""
    return replace(schedule, stages=min(schedule.stages + 1, max(schedule.stages, _FURTHEST)))


def combined(own: Chunked) -> Schedule:
    """Of programs that combine transitions."""
    return replace(own.schedule, warps=8 if own.delta else 4, stages=3 if own.delta else 2, registers=0)


def scratch(own: Chunked) -> list[Tensor]:
    """The buffers between the programs."""
    rated = own.rated and own.writes.beta is not None
    found = [own.sums] * own.decays + [own.rates] * rated + strengths.halves_of(own) + [own.solved] * own.delta
    found += factors.tensors(own)
    if own.splits > 1:
        found += [own.ends, own.starts] + [own.fades] * own.fading
    return found
