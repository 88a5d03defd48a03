"""Times of several ways to compute something, taken in turn, so that a drift of the machine meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from statistics import median
from typing import TypeVar

from sparsec.autotune.measure import clock_for

ROUNDS = 9

SETTLE = 0.05
"""Seconds on a CPU for which a side runs untimed: as long as other libraries' threads may still wait for work."""


Name = TypeVar("Name", bound=Hashable)


def race(runs: Mapping[Name, Callable[[], object]], device: str, rounds: int = ROUNDS) -> dict[Name, float]:
    """Median seconds of each, over rounds in which every one runs untimed and then timed, every other round backwards.

    The untimed runs let the threads of one library come to rest before another's are on the clock.
    """
    clock, settle = clock_for(device), SETTLE if device == "cpu" else 0.0
    samples: dict[Name, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, run in list(runs.items())[:: -1 if number % 2 else 1]:
            _untimed(run, settle)
            samples[name].append(clock(lambda run=run: _once(run)))  # type: ignore[misc]
    return {name: median(times) for name, times in samples.items()}


def _untimed(run: Callable[[], object], seconds: float) -> None:
    """Once, and again until so many seconds have passed."""
    began = time.perf_counter()
    run()
    while time.perf_counter() - began < seconds:
        run()


def processor_seconds(run: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median processor time of a call, all threads together: what it would take on one core that is its own."""
    samples = []
    for _ in range(rounds):
        began = time.process_time()
        run()
        samples.append(time.process_time() - began)
    return median(samples)


def _once(run: Callable[[], object]) -> None:
    run()
