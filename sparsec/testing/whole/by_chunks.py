"""Scans of packed documents and of dense calls put under one chunk schedule, in short segments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sparsec.lower.scan.chunk import parts
from sparsec.lower.segments import schedule
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.runtime.compiled import Compiled
from sparsec.tile.schedule import Schedule

LENGTHS = (21, 0, 1, 70, 3, 33)
"""Tokens of documents, two tiles of 64 in all: of chunks of 16 they make 2, 0, 1, 5, 1 and 3, the last never full."""

CHUNKS = Schedule(order="chunk", rows=16, value_block=16, splits=4)


def by_chunks(monkeypatch: pytest.MonkeyPatch, shortest: int = 2) -> set[str]:
    """Every scan has ``CHUNKS`` for its schedule, segments so many chunks or more; the orders of those that ran."""
    monkeypatch.setattr(parts, "_LONG", shortest)
    usual, ran = Compiled.schedule, set[str]()

    def chosen(self: Compiled, kernel: Any, *more: Any, **named: Any) -> Schedule:
        if not isinstance(kernel.spec, Scan | ScanGrad):
            return usual(self, kernel, *more, **named)
        found = CHUNKS if kernel.packed is None else schedule(kernel.spec, replace(CHUNKS, documents=True))
        ran.add(found.order)
        return found

    monkeypatch.setattr(Compiled, "schedule", chosen)
    return ran
