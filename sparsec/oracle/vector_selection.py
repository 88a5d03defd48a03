"""The quick form of choosing: the functions of `sparsec.oracle.loop` with the same signatures, without its loops."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sparsec.oracle.selection import Choice, Reduction
from sparsec.oracle.vector_attention import softmax
from sparsec.oracle.weights import WeightFn


def reduce_heads(score: Tensor, sharers: int, op: Reduction) -> Tensor:
    """``[B,R,H,N]`` -> ``[B,R,sharers,N]``: each keeps the reduction over its H / sharers heads."""
    return _reduce(score.unflatten(2, (sharers, -1)), 3, op)


def overlap(score: Tensor, blocks: int, size: int, stride: int, block: int, literal: bool) -> Tensor:
    """Summary scores ``[B,R,H,NS]`` -> block scores ``[B,R,H,blocks]``; see `selection.overlap_query`."""
    ratio, total = block // stride, score.new_zeros(*score.shape[:-1], blocks)
    first = ratio * torch.arange(blocks, device=score.device)
    for m in range(ratio):
        for n in range(size // stride):
            total = total + _take(score, first - m - n if literal else first + m - n, 0.0)
    return total


def pool(score: Tensor, blocks: int, kernel: int, stride: int, padding: int, op: Reduction) -> Tensor:
    """Scores ``[B,R,H,N]`` -> block scores ``[B,R,H,blocks]``; see `selection.pool_query`."""
    first = stride * torch.arange(blocks, device=score.device) - padding
    windows = torch.stack([_take(score, first + offset, -torch.inf) for offset in range(kernel)], dim=-1)
    if op == "max":
        return windows.amax(-1)
    present = windows != -torch.inf
    total = torch.where(present, windows, 0.0).sum(-1)
    return total if op == "sum" else total / present.sum(-1).clamp(min=1)


def choose(score: Tensor, eligible: Tensor, forced: Tensor, choice: Choice) -> Tensor:
    """Scores and bools ``[B,R,HS,N]`` -> ids int64 ``[B,R,HS,slots]``; see `selection.choose_query`."""
    by_score = score.sort(dim=-1, descending=True, stable=True).indices
    forced = forced & eligible
    grade = (eligible.int() + forced.int()).gather(-1, by_score)
    ranked = by_score.gather(-1, grade.sort(dim=-1, descending=True, stable=True).indices)
    limit = eligible.sum(-1).clamp(max=choice.k)
    if not choice.count_forced:
        limit = torch.minimum(choice.k + forced.sum(-1), eligible.sum(-1))
    missing = max(choice.slots - ranked.shape[-1], 0)
    ids = torch.nn.functional.pad(ranked, (0, missing), value=-1)[..., : choice.slots]
    ids = torch.where(torch.arange(choice.slots, device=ids.device) < limit[..., None], ids, -1)
    return ids if choice.order == "score" else by_position(ids, choice.order == "newest")


def by_position(ids: Tensor, newest: bool) -> Tensor:
    """Lists sorted along the last dimension by descending or ascending index, −1 last."""
    if newest:
        return ids.sort(dim=-1, descending=True).values
    last = torch.iinfo(ids.dtype).max
    ids = torch.where(ids < 0, last, ids).sort(dim=-1).values
    return torch.where(ids == last, -1, ids)


def weigh(score: Tensor, ids: Tensor, fn: WeightFn) -> Tensor:
    """Scores ``[B,R,HS,N]`` and lists ``[B,R,HS,K]`` -> weights ``[B,R,HS,K]``; see `weights.weigh_query`."""
    valid = ids >= 0
    if score.shape[-1] == 0:
        return score.new_zeros(ids.shape)
    chosen = torch.where(valid, score.gather(-1, ids.clamp(min=0)), 0.0)
    return torch.where(valid, _weights(chosen, valid, fn), 0.0)


def _weights(chosen: Tensor, valid: Tensor, fn: WeightFn) -> Tensor:
    if fn == "raw":
        return chosen
    if fn == "sigmoid":
        return torch.sigmoid(chosen)
    if fn == "softmax":
        return softmax(chosen, valid)
    if fn == "softmax_sink":
        one_more = torch.cat([chosen, torch.zeros_like(chosen[..., :1])], -1)
        return softmax(one_more, torch.cat([valid, torch.ones_like(valid[..., :1])], -1))[..., :-1]
    assert fn == "stick"
    cost = torch.where(valid, softplus(chosen), 0.0)
    # ln σ(s) is −softplus(−s): s − softplus(s) would lose digits where s is large.
    return torch.exp(-softplus(-chosen) - (torch.cumsum(cost, -1) - cost))


def _take(score: Tensor, at: Tensor, missing: float) -> Tensor:
    """Elements of the last dimension, `missing` where the index is out of range."""
    count = score.shape[-1]
    if count == 0:
        return score.new_full((*score.shape[:-1], at.shape[0]), missing)
    return torch.where((at >= 0) & (at < count), score[..., at.clamp(0, count - 1)], missing)


def _reduce(x: Tensor, dim: int, op: Reduction) -> Tensor:
    if op == "max":
        return x.amax(dim)
    return x.sum(dim) if op == "sum" else x.mean(dim)
