"""Stopwatches: the time of each of some launches that follow one another as they do in a call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import torch

Run = Callable[[], object]
Laps = Callable[[Sequence[Run]], "list[float]"]
"""Milliseconds of each of some launches, made once, in order."""

FLUSH_BYTES = 256 * 2**20
LAUNCH_CYCLES = 200_000
"""Cycles of a GPU that the host is given to queue a launch: about 0.1 ms."""


def laps_by_events() -> Laps:
    """CUDA events between the launches, all queued while the GPU waits: no time of the host is in between.

    The L2 cache is flushed before the first; each finds in it what the ones before it left.
    """
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def laps(runs: Sequence[Run]) -> list[float]:
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(runs) + 1)]
        flush.zero_()
        _wait(LAUNCH_CYCLES * len(marks))
        marks[0].record()
        for run, mark in zip(runs, marks[1:], strict=True):
            run()
            mark.record()
        marks[-1].synchronize()
        return [float(a.elapsed_time(b)) for a, b in pairwise(marks)]

    return laps


def _wait(cycles: int) -> None:
    sleep: Any = getattr(torch.cuda, "_sleep", None)
    if sleep is not None:
        sleep(cycles)


def laps_by_wall(runs: Sequence[Run]) -> list[float]:
    """By the wall clock, on a CPU."""
    marks = [time.perf_counter()]
    for run in runs:
        run()
        marks.append(time.perf_counter())
    return [(b - a) * 1e3 for a, b in pairwise(marks)]


def laps_for(device: str) -> Laps:
    """The stopwatch of a device type."""
    return laps_by_events() if device == "cuda" else laps_by_wall


def median_laps(laps: Laps, runs: Sequence[Run], rounds: int) -> list[float]:
    """Of each launch the median over some rounds; a round before them warms up and is dropped."""
    laps(runs)
    return [median(times) for times in zip(*(laps(runs) for _ in range(rounds)), strict=True)]
