"""What the references share: softmax over a set, sets from lists, the best of some scores and by how much they lead."""

import math

import torch
from torch import Tensor

from sparsec.benchmarks.cases import Case


def softmax_over(scores: Tensor, allowed: Tensor) -> Tensor:
    """Softmax over the allowed keys; a row without any is 0, and so is its gradient."""
    some = allowed.any(-1, keepdim=True)
    return scores.masked_fill(~allowed & some, -math.inf).softmax(-1) * some


def keys_of(case: Case, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of queries [R, 1] and of keys [1, T]."""
    return rows[:, None], torch.arange(case.T, device=rows.device)[None]


def members_of(indices: Tensor, count: int) -> Tensor:
    """Which of `count` blocks each row's list names, bool [R, count]; -1 names none."""
    listed = torch.zeros(len(indices), count + 1, dtype=torch.bool, device=indices.device)
    return listed.scatter_(1, torch.where(indices < 0, count, indices).long(), True)[:, :count]


def best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Members of the top k of eligible (finite) scores, and the gap after the last relative to the best score.

    The gap is infinite where no more than k are eligible.
    """
    ranked, order = torch.nn.functional.pad(scores, (0, k + 1), value=-math.inf).topk(k + 1, -1)
    chosen = members_of(order[:, :k].masked_fill(ranked[:, :k] == -math.inf, -1), scores.shape[-1])
    ahead = (ranked[:, k - 1] - ranked[:, k]) / ranked[:, 0].abs().clamp_min(1e-5)
    return chosen, torch.where(ranked[:, k] == -math.inf, math.inf, ahead)
