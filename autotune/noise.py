"""Bounds of a median that assume nothing about the noise: the sign test."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

CONFIDENCE = 0.99


def outermost(rounds: int, confidence: float = CONFIDENCE) -> int | None:
    """How many samples from either end may be left out of a one-sided bound of the median; None: too few samples.

    The k-th smallest of n samples is above the true median with the probability that fewer than k of n fair coins show
    heads; the bound takes the largest k for which that is at most 1 - confidence.
    """
    allowed, tail = 1.0 - confidence, 0.0
    for k in range(rounds):
        tail += comb(rounds, k) / 2.0**rounds
        if tail > allowed:
            return k - 1 if k else None
    return None


def bounds(ratios: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Lower and upper confidence bound of the median of paired ratios; infinite where there are too few."""
    k = outermost(len(ratios), confidence)
    if k is None:
        return 0.0, float("inf")
    ordered = sorted(ratios)
    return ordered[k], ordered[-1 - k]
