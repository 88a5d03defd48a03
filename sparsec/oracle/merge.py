"""Merging branches ``[B,R,H,DV]`` row by row: the meaning of `merge`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merge_lse(outputs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The softmax over the union of disjoint sets from each set's (o, log-sum-exp ``[B,R,H]``) -> (o, log-sum-exp)."""
    top = torch.stack([lse.detach() for lse in lses]).amax(dim=0)
    top = torch.where(top == -torch.inf, 0.0, top)
    power = [torch.exp(lse - top) for lse in lses]
    total = torch.stack(power).sum(dim=0)
    empty = total == 0
    safe = torch.where(empty, 1.0, total)
    o = sum_of([p[..., None] * out for p, out in zip(power, outputs, strict=True)]) / safe[..., None]
    return o, torch.where(empty, -torch.inf, top + torch.log(safe))


def merge_gated(outputs: Sequence[Tensor], gates: Sequence[Tensor]) -> Tensor:
    """Σ gate_i · o_i with gates ``[B,R,H]``. NSA, arXiv 2502.11089."""
    return sum_of([gate[..., None] * out for gate, out in zip(gates, outputs, strict=True)])


def merge_convex(outputs: Sequence[Tensor], gate: Tensor) -> Tensor:
    """g · o_0 + (1 − g) · o_1."""
    first, second = outputs
    return gate[..., None] * first + (1 - gate[..., None]) * second


def sum_of(outputs: Sequence[Tensor]) -> Tensor:
    """Σ o_i, in order."""
    total = outputs[0]
    for out in outputs[1:]:
        total = total + out
    return total
