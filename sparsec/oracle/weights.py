"""Weights of a query's chosen members: the meaning of `weights` (semantics §2.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

WeightFn = Literal["softmax", "softmax_sink", "stick", "raw", "sigmoid"]


def weigh_query(score: Tensor, ids: Tensor, fn: WeightFn) -> Tensor:
    """Scores ``[N]`` and chosen ids ``[K]`` (−1: nothing, weight 0) -> weights ``[K]``.

    softmax: over the chosen. softmax_sink: the same with one more logit of 0 in the denominator. stick: stick-
    breaking in the order of the list, w_j = σ(s_j) Π_{i<j} (1 − σ(s_i)) (HSA, arXiv 2504.16795). raw: the score.
    sigmoid: σ(score).
    """
    valid = [(slot, int(c)) for slot, c in enumerate(ids) if c >= 0]
    weights = [score.new_zeros(()) for _ in ids]
    if not valid:
        return torch.stack(weights) if weights else score.new_zeros(0)
    chosen = torch.stack([score[c] for _, c in valid])
    for (slot, _), weight in zip(valid, _RULES[fn](chosen), strict=True):
        weights[slot] = weight
    return torch.stack(weights)


def softmax(score: Tensor) -> Tensor:
    """exp(s) / Σ exp(s)."""
    power = torch.exp(score - score.max())
    return power / power.sum()


def softmax_sink(score: Tensor) -> Tensor:
    """exp(s) / (1 + Σ exp(s))."""
    return softmax(torch.cat([score, score.new_zeros(1)]))[:-1]


def stick(score: Tensor) -> Tensor:
    """σ(s_j) times what the members before it left of the stick; what the last leaves is lost."""
    left, weights = score.new_ones(()), []
    for s in score:
        weights.append(left * torch.sigmoid(s))
        left = left * torch.sigmoid(-s)
    return torch.stack(weights)


_RULES: dict[WeightFn, Callable[[Tensor], Tensor]] = {
    "softmax": softmax,
    "softmax_sink": softmax_sink,
    "stick": stick,
    "raw": lambda score: score,
    "sigmoid": torch.sigmoid,
}
