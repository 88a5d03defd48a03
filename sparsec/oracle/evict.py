"""A cache of fixed size whose pairs are given up for a linear state, chunk by chunk (LoLA, arXiv 2505.23666)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsec.ir.node import Node

if TYPE_CHECKING:
    from sparsec.oracle.evaluate import Evaluation

NEVER = 2**30


def evict(ev: Evaluation, node: Node) -> Tensor:
    """The chunk after which each pair is given up, int32 ``[B,T,HKV]``."""
    k, v = (ev.tensor(source).detach() for source in node.src)
    left = torch.full(k.shape[:3], NEVER, dtype=torch.int32, device=k.device)
    for b in range(k.shape[0]):
        for h in range(k.shape[2]):
            one_head(k[b, :, h], v[b, :, h], left[b, :, h], node.integer("keep"), node.integer("size"))
    return left


def one_head(k: Tensor, v: Tensor, left: Tensor, keep: int, size: int) -> None:
    """Fill ``left [T]`` for keys ``[T,D]`` and values ``[T,DV]``."""
    state, mass, held = k.new_zeros(k.shape[1], v.shape[1]), k.new_zeros(k.shape[1]), list[int]()
    for chunk in range(k.shape[0] // size):
        held += range(chunk * size, (chunk + 1) * size)
        error = {t: float((recalled(k[t], state, mass) - v[t]).square().sum()) for t in held}
        held.sort(key=lambda t: (-error[t], t))
        for t in held[keep:]:
            state, mass = state + torch.outer(k[t], v[t]), mass + k[t]
            left[t] = chunk
        held = held[:keep]


def recalled(k: Tensor, state: Tensor, mass: Tensor) -> Tensor:
    """Mᵀk / zᵀk ``[DV]``; 0 of a state that holds nothing."""
    weight = k @ mass
    return (k @ state) / weight if float(weight) else torch.zeros_like(k @ state)
