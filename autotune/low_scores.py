"""Queries and keys whose scores are all far below zero, where padding scores 0.

A key that is not there and that a mask lets through is then worth hundreds of those that are; among ordinary scores it
may hide within the bounds of half precision.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsec.plan.specs import GatheredAttention, Selector, TiledAttention

SCORE = -6.0
"""The mean score in natural units: half precision holds the weights beside a logit of 0."""

MEAN_SIZE = (2 / torch.pi) ** 0.5 + 0.5
"""The mean of |x| + 0.5 for a normal x; adding a half leaves no score near zero."""


def with_low_scores(spec: object, buffers: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The buffers with other queries and keys; None for a kernel that scores no keys, or queries with themselves.

    Shapes and dtypes stay; scores before soft cap and bias lie around ``SCORE``.
    """
    if not isinstance(spec, TiledAttention | GatheredAttention | Selector):
        return None
    keys, dim = _keys(spec)
    if spec.q in keys or spec.scale == 0:
        return None
    size = (abs(SCORE / spec.scale) / (dim * MEAN_SIZE**2)) ** 0.5
    sign = -1.0 if spec.scale > 0 else 1.0
    drawn = {name: _drawn(buffers[name], sign * size, seed) for seed, name in enumerate(keys, 1)}
    return {**buffers, **drawn, spec.q: _drawn(buffers[spec.q], size, 0)}


def _keys(spec: TiledAttention | GatheredAttention | Selector) -> tuple[list[str], int]:
    """The buffers of keys, and the head dim."""
    if isinstance(spec, Selector):
        return [spec.keys], spec.dim
    return [p.k for p in spec.pieces] if isinstance(spec, TiledAttention) else [spec.k], spec.head_dim


def _drawn(like: Tensor, size: float, seed: int) -> Tensor:
    """Numbers of one sign, the same ones every time."""
    x = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
    return ((x.abs() + 0.5) * size).to(like.device, like.dtype)
