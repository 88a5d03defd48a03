"""Rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, start: int, base: float = 10000.0) -> Tensor:
    """x ``[B,T,H,D]`` with channels (d, d + D/2) turned by position · base^(−2d/D); positions from ``start``."""
    half = x.shape[-1] // 2
    rates = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = (start + torch.arange(x.shape[1], device=x.device, dtype=torch.float32)).unsqueeze(-1) * rates
    cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)
