"""Schedules of scans of packed documents: in chunks from where each document begins, or by the token recurrence."""

from __future__ import annotations

from dataclasses import replace

from sparsec.lower.scan import schedules
from sparsec.plan.states.scan_specs import Scan, ScanGrad, Writes
from sparsec.tile.schedule import Schedule


def packed_form(spec: Scan | ScanGrad, schedule: Schedule) -> Schedule:
    """A schedule of packed documents.

    Schedules of dense calls have ``documents`` false: their chunks serve where those of documents were timed.
    """
    if schedule.order == "chunk" and (schedule.documents or _timed(_writes(spec))):
        return replace(schedule, keep=False, documents=True)
    return replace(schedules.token_form(spec, schedule), documents=True)


def known(spec: Scan | ScanGrad, target: str) -> tuple[Schedule, ...]:
    """Documents in chunks, which the tuner tries first where they are not the default."""
    found = schedules.default(spec, target) if isinstance(spec, Scan) else schedules.default_grad(spec, target)
    usual = packed_form(spec, found)
    if usual.order == "chunk":
        return ()
    inner = schedules.in_chunks(spec, target) if isinstance(spec, Scan) else schedules.in_chunks_back(spec, target)
    return tuple(packed_form(spec, each) for each in schedules.beside(_writes(spec), usual, inner))


def _writes(spec: Scan | ScanGrad) -> Writes:
    return spec.writes if isinstance(spec, Scan) else spec.forward.writes


PARTS = 4
"""Parts of a bank up to which a GPU was timed. Every document takes a chunk or more per part, in work and scratch."""


def _timed(w: Writes) -> bool:
    """Whether a GPU was seen to be faster with documents in chunks; elsewhere the tuner has to see it."""
    return w.route is None or w.route.parts <= PARTS
