"""Short causal convolutions per channel, and what they keep between decode steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu


class ShortConvolution(nn.Module):
    """silu(Σ_j w_j ⊙ x_(t−j)) over the last ``width`` tokens of ``[B,T,channels]``, as in Mamba and DeltaNet.

    Parameters: weight ``[channels, width]``, the newest token last; uniform within ±width^-½, as torch's Conv1d.
    """

    def __init__(self, channels: int, width: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, width).uniform_(-(width**-0.5), width**-0.5))

    def extra_repr(self) -> str:
        """Its sizes."""
        return "{}, width={}".format(*self.weight.shape)

    def forward(self, x: Tensor, tail: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The result and the last ``width − 1`` tokens, which the next call is given as ``tail``; zeros come first."""
        behind = self.weight.shape[1] - 1
        padded = pad(x, (0, 0, behind, 0)) if tail is None else torch.cat([tail, x], 1)
        weight, tokens = self.weight.to(x.dtype), x.shape[1]
        total = padded[:, :tokens] * weight[:, 0]
        for j in range(1, behind + 1):
            total = total + padded[:, j : j + tokens] * weight[:, j]
        return silu(total), padded[:, tokens:].detach()
