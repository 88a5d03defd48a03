"""How far scores are from the attention that keys get: the meaning of ``aux`` with fn = kl, for one list."""

from __future__ import annotations

import torch
from torch import Tensor


def divergence_query(target: Tensor, score: Tensor, present: Tensor) -> Tensor:
    """Σ p (ln p − ln softmax(score)) over the present -> 0-dim; p is the target over its sum. DSA, arXiv 2512.02556.

    target (masses, at least 0), score and present (bool) ``[N]``. A column without mass adds nothing; with no mass at
    all the divergence is 0.
    """
    mass, score = target[present], score[present]
    if not bool((mass > 0).any()):
        return score.sum() * 0.0
    p = mass / mass.sum()
    total = torch.logsumexp(score, dim=0)
    return sum((p[n] * (torch.log(p[n]) - score[n] + total) for n in range(len(p)) if p[n] > 0), score.new_zeros(()))
