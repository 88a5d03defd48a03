"""How close a selection was: ties and near ties, so that lists can be compared honestly (architecture §10)."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsec.oracle.values import Chosen


def selection_gap(chosen: Chosen, magnitude: Tensor | None = None) -> Tensor:
    """The gap between the last chosen score and the best one left out, in ulps of fp32 -> ``[B,TQ,HS]``.

    Infinite where nothing eligible was left out or only forced members were chosen. An ulp is that of the larger of
    the two scores, or of `magnitude` ``[B,TQ,HS,N]`` where a score is a sum of larger terms that cancel.
    """
    assert chosen.score is not None and chosen.eligible is not None and chosen.forced is not None, (
        "given indices have no gap"
    )
    score = chosen.score.detach()
    inside = _listed(chosen.ids, score.shape[-1])
    last = torch.where(inside & ~chosen.forced, score, torch.inf)
    best = torch.where(chosen.eligible & ~inside, score, -torch.inf)
    size = score.abs() if magnitude is None else magnitude.abs()
    none = score.new_full((*score.shape[:-1], 1), torch.inf)
    k_th, at = torch.cat([last, none], -1).min(-1)
    following, after = torch.cat([best, -none], -1).max(-1)
    padded = torch.cat([size, torch.zeros_like(none)], -1)
    largest = torch.maximum(padded.gather(-1, at[..., None]), padded.gather(-1, after[..., None]))[..., 0]
    return (k_th - following) / ulp(largest)


def same_selection(actual: Tensor, chosen: Chosen, ulps: float = 4.0, magnitude: Tensor | None = None) -> Tensor:
    """Whether each list ``[B,TQ,HS,K]`` holds the oracle's members -> bool ``[B,TQ,HS]``.

    Where the gap is below `ulps`, another member may stand in for one whose score is within that gap of the last
    chosen.
    """
    assert chosen.score is not None and chosen.eligible is not None and chosen.forced is not None
    score = chosen.score.detach()
    count = score.shape[-1]
    got, want = _listed(actual.to(torch.int64), count), _listed(chosen.ids, count)
    missing, extra = want & ~got, got & ~want
    best_missing = _largest(torch.where(missing, score, -torch.inf))
    worst_extra = -_largest(torch.where(extra, -score, -torch.inf))
    size = (score if magnitude is None else magnitude).abs()
    largest = _largest(torch.where(missing | extra, size, 0.0)).clamp(min=0)
    close = best_missing - worst_extra <= ulps * ulp(largest)
    legal = ~(extra & ~chosen.eligible).any(-1) & ~(missing & chosen.forced).any(-1)
    return (missing.sum(-1) == extra.sum(-1)) & legal & (close | ~missing.any(-1)) & _unique(actual)


def ulp(x: Tensor) -> Tensor:
    """The distance from |x| to the next larger fp32 number, as fp64."""
    single = x.abs().to(torch.float32)
    return (torch.nextafter(single, torch.full_like(single, torch.inf)) - single).double()


def _listed(ids: Tensor, count: int) -> Tensor:
    """Which of `count` units are in a list ``[…,K]`` -> bool ``[…,count]``."""
    table = torch.zeros(*ids.shape[:-1], count + 1, dtype=torch.bool, device=ids.device)
    return table.scatter(-1, torch.where(ids < 0, count, ids), True)[..., :count]


def _largest(x: Tensor) -> Tensor:
    """The maximum over the last dimension, −inf where that is empty."""
    return torch.cat([x, x.new_full((*x.shape[:-1], 1), -torch.inf)], -1).amax(-1)


def _unique(ids: Tensor) -> Tensor:
    """Whether a list ``[…,K]`` names nothing twice."""
    ordered = ids.sort(-1).values
    return ~((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any(-1)
