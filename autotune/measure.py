"""Timing a challenger in turn with the incumbent, for as many rounds as it takes to tell them apart."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from sparsec.autotune.noise import bounds
from sparsec.autotune.trial import Comparison

Run = Callable[[], None]
Clock = Callable[[Run], float]
"""Seconds of one call of a prepared kernel, as one sample."""

HOPELESS = 2.0  # a challenger this many times slower is not timed again
SLOWER = 1.05  # nor is one that lost each of the first rounds by this factor
FLUSH_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Rounds:
    """How long to time.

    Attributes:
        screen: after so many rounds a clearly slower challenger is dropped.
        looks: after so many rounds each, see whether it is decided; the last one ends it.
    """

    screen: int = 3
    looks: tuple[int, ...] = (7, 11, 15)


SEARCH, FINAL = Rounds(), Rounds(screen=15, looks=(15, 25))


def compare(challenger: Run, incumbent: Run, clock: Clock, rounds: Rounds = SEARCH) -> Comparison:
    """The ratio of two kernels' times, from rounds in which each runs once and the order alternates.

    It is decided by the sign test on the rounds' ratios, so a win is a win beyond noise: a drift of the machine moves
    both sides of a round.
    """
    for run in (challenger, incumbent):
        run()
    pairs: list[tuple[float, float]] = []
    while not _decided(pairs, rounds):
        if len(pairs) % 2:
            own = clock(challenger)
            pairs.append((own, clock(incumbent)))
        else:
            other = clock(incumbent)
            pairs.append((clock(challenger), other))
    ratios = [a / b for a, b in pairs]
    own, other = (median(side) for side in zip(*pairs, strict=True))
    return Comparison(median(ratios), *bounds(ratios), own, other, len(pairs))


def _decided(pairs: list[tuple[float, float]], rounds: Rounds) -> bool:
    """Whether further rounds would change nothing."""
    count, ratios = len(pairs), [a / b for a, b in pairs]
    if count == 1 and ratios[0] > HOPELESS:
        return True
    if count == rounds.screen and min(ratios) > SLOWER:
        return True
    if count not in rounds.looks:
        return False
    low, high = bounds(ratios)
    return count == rounds.looks[-1] or low > 1 or high < 1


def wall_clock(least: float = 0.002) -> Clock:
    """For kernels that are done when the call returns: the mean over as many calls as fill ``least`` seconds."""

    def clock(run: Run) -> float:
        calls, began = 0, time.perf_counter()
        while True:
            run()
            calls += 1
            spent = time.perf_counter() - began
            if spent >= least:
                return spent / calls

    return clock


def cuda_clock(least: float = 0.004, most: int = 20) -> Clock:
    """For kernels on the current CUDA stream: events around each call, the L2 cache flushed before it; their median."""
    import torch

    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def once(run: Run) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    def clock(run: Run) -> float:
        first = once(run)
        calls = min(most, max(1, round(least / max(first, 1e-6))))
        return median([first, *(once(run) for _ in range(calls - 1))])

    return clock


def clock_for(device: str) -> Clock:
    """The clock of a torch device type."""
    return cuda_clock() if device == "cuda" else wall_clock()
