"""Summaries of windows of tokens: the meaning of `summary`."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor


def summarise(x: Tensor, size: int, stride: int, fn: Literal["mean", "max"]) -> Tensor:
    """x ``[B,T,H,D]`` -> ``[B,ceil(T/stride),H,D]``: window n holds tokens ``n*stride … n*stride + size - 1`` below T.

    A partial last window averages what exists.
    """
    windows = [x[:, start : start + size] for start in range(0, x.shape[1], stride)]
    assert len(windows) == math.ceil(x.shape[1] / stride)
    if not windows:
        return x[:, :0]
    return torch.stack([w.mean(dim=1) if fn == "mean" else w.amax(dim=1) for w in windows], dim=1)
