"""Scoring, reducing and choosing for one query, token by token: the meaning of `score`, `reduce` and `topk`.

Semantics §0.1 points 1-4, §2.1, §10-§13.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Order = Literal["score", "newest", "oldest"]
Reduction = Literal["sum", "mean", "max"]


def cosine_query(q: Tensor, keys: Tensor) -> Tensor:
    """cos(q, key) for a query ``[D]`` and keys ``[N,D]`` -> ``[N]``; a zero vector has cosine 0."""
    lengths = keys.norm(dim=-1) * q.norm()
    return (keys @ q) / torch.where(lengths > 0, lengths, 1)


def indexer_query(q: Tensor, keys: Tensor, head_weights: Tensor) -> Tensor:
    """Σ_j w_j · ReLU(q_j · key): q ``[HI,D]``, keys ``[N,D]``, head_weights ``[HI]`` -> ``[N]``. DSA, 2512.02556."""
    score = keys.new_zeros(keys.shape[0])
    for head, weight in zip(q, head_weights, strict=True):
        score = score + weight * torch.relu(keys @ head)
    return score


def softmax_query(score: Tensor, visible: Tensor) -> Tensor:
    """Probabilities ``[N]`` over the visible; an invisible one has 0, and so have all where none is visible."""
    if not bool(visible.any()):
        return torch.zeros_like(score)
    power = torch.exp(score[visible] - score[visible].max())
    return torch.zeros_like(score).masked_scatter(visible, power / power.sum())


def reduce_heads(score: Tensor, op: Reduction) -> Tensor:
    """Scores ``[G,N]`` of the heads that share a selection -> ``[N]``."""
    if op == "max":
        return score.amax(dim=0)
    return score.sum(dim=0) if op == "sum" else score.mean(dim=0)


def reduce_queries(score: Tensor, op: Reduction) -> Tensor:
    """Scores ``[B,TQ,HS,N]`` of a set of queries -> ``[B,1,HS,N]``: one question asks once (2603.23516)."""
    if op == "max":
        return score.amax(1, keepdim=True)
    return score.sum(1, keepdim=True) if op == "sum" else score.mean(1, keepdim=True)


def overlap_query(score: Tensor, blocks: int, size: int, stride: int, block: int, literal: bool) -> Tensor:
    """Importance of selection blocks from overlapping summaries: scores ``[NS]`` -> ``[blocks]``. NSA, 2502.11089.

    Block j collects summaries ``r*j + m - n`` for 0 <= m < r = block/stride and 0 <= n < size/stride; read literally
    with 0-based blocks, the paper's formula is ``r*j - m - n``. Summaries that do not exist contribute nothing.
    """
    ratio = block // stride
    total = [score.new_zeros(()) for _ in range(blocks)]
    for j in range(blocks):
        for m in range(ratio):
            for n in range(size // stride):
                at = ratio * j - m - n if literal else ratio * j + m - n
                if 0 <= at < score.shape[0]:
                    total[j] = total[j] + score[at]
    return torch.stack(total) if total else score.new_zeros(0)


def pool_query(score: Tensor, blocks: int, kernel: int, stride: int, padding: int, op: Reduction) -> Tensor:
    """Block j reduces scores ``j*stride - padding … + kernel - 1``; those that do not exist contribute nothing.

    A score of −inf does not exist either; a block of nothing has −inf under max and 0 otherwise. InfLLM-v2, arXiv
    2509.24663.
    """
    pooled = []
    for j in range(blocks):
        start = j * stride - padding
        window = score[max(start, 0) : max(start + kernel, 0)]
        window = window[window != -torch.inf]
        if window.numel() == 0:
            pooled.append(score.new_tensor(-torch.inf if op == "max" else 0.0))
        else:
            pooled.append(reduce_heads(window[:, None], op)[0])
    return torch.stack(pooled) if pooled else score.new_zeros(0)


@dataclass(frozen=True, slots=True)
class Choice:
    """How many are chosen and how the list is ordered.

    Attributes:
        k: the number of members, forced ones included if ``count_forced``.
        slots: the length of the list; what is left over is −1.
        order: by rank ("score"), or by descending ("newest") or ascending ("oldest") index, −1 last.
    """

    k: int
    slots: int
    count_forced: bool = True
    order: Order = "score"


def choose_query(score: Tensor, eligible: Tensor, forced: Tensor, choice: Choice) -> Tensor:
    """Scores ``[N]``, eligible and forced bool ``[N]`` -> ids int64 ``[slots]``, −1 where nothing is left.

    Only eligible members are chosen, forced ones first, then by score, ties by the lower index; NaN ranks highest. An
    eligible member is never left out in favour of −1, however low its score.
    """
    ranked = sorted((c for c in range(score.shape[0]) if eligible[c]), key=lambda c: _rank(score, forced, c))
    must = [c for c in ranked if forced[c]]
    limit = choice.k if choice.count_forced else choice.k + len(must)
    chosen = ranked[: min(limit, choice.slots)]
    if choice.order != "score":
        chosen.sort(reverse=choice.order == "newest")
    return torch.tensor(chosen + [-1] * (choice.slots - len(chosen)), dtype=torch.int64, device=score.device)


def _rank(score: Tensor, forced: Tensor, c: int) -> tuple[bool, float, int]:
    value = float(score[c].detach())
    return (not bool(forced[c]), -math.inf if math.isnan(value) else -value, c)
