"""Softmax attention of one query, token by token: the meaning of `attend` (semantics §1, §2.1, §0.1 point 7)."""

from __future__ import annotations

import torch
from torch import Tensor


def dot_query(q: Tensor, keys: Tensor) -> Tensor:
    """q·key for a query ``[D]`` and keys ``[N,D]`` -> ``[N]``."""
    return keys @ q


def attend_query(score: Tensor, v: Tensor, visible: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    """score ``[N]``, v ``[N,DV]``, visible bool ``[N]`` -> o ``[DV]``, log-sum-exp (0-dim).

    A score of −inf is a key that is not there. A sink is a logit that joins the denominator only. With nothing to
    attend to, o is 0 and the log-sum-exp −inf, or the sink's logit where there is one.
    """
    there = visible & (score != -torch.inf)
    score, v = score[there], v[there]
    logits = score if sink is None else torch.cat([score, sink.reshape(1)])
    if bool((logits == -torch.inf).all()):
        return v.new_zeros(v.shape[-1]), score.new_tensor(-torch.inf)
    top = logits.max()
    total = torch.exp(logits - top).sum()
    return torch.exp(score - top) / total @ v, top + torch.log(total)


def attend_chunks_query(
    score: Tensor, v: Tensor, visible: Tensor, chunks: Tensor, weights: Tensor, size: int, sink: Tensor | None
) -> Tensor:
    """A softmax inside each chosen chunk, then the weighted sum: o = Σ_i weights[i] · attend(chunk i) -> ``[DV]``.

    chunks int ``[K]`` (−1: nothing), weights ``[K]``; chunk c holds keys ``c*size … (c+1)*size - 1``. The sink
    applies inside each chunk. HSA, arXiv 2504.16795.
    """
    o = v.new_zeros(v.shape[-1])
    for chunk, weight in zip(chunks.tolist(), weights, strict=True):
        if chunk >= 0:
            here = slice(chunk * size, (chunk + 1) * size)
            o = o + weight * attend_query(score[here], v[here], visible[here], sink)[0]
    return o


def members_query(chunks: Tensor, size: int, keys: int) -> Tensor:
    """Which of the keys lie in one of the chunks: int ``[K]`` (−1: nothing) -> bool ``[keys]``."""
    inside = torch.zeros(keys, dtype=torch.bool, device=chunks.device)
    for chunk in chunks.tolist():
        if chunk >= 0:
            inside[chunk * size : (chunk + 1) * size] = True
    return inside


def of_members_query(value: Tensor, chunks: Tensor, size: int, keys: int) -> Tensor:
    """The number of the chunk that each key lies in: ``[K]`` of chunks int ``[K]`` -> ``[keys]``, 0 in none of them."""
    found = value.new_zeros(keys)
    for slot, chunk in enumerate(chunks.tolist()):
        if chunk >= 0:
            inside = torch.arange(keys, device=value.device) // size == chunk
            found = torch.where(inside, value[slot], found)
    return found
