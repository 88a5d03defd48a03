"""Modules that make one input of an op from the hidden states ``[B,T,dim]``, by what the input is."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from sparsec.nn.convolution import ShortConvolution

Tails = dict[str, Tensor]


class Source(nn.Module):
    """Makes the input ``name`` with dims ``trailing`` after ``[B,T]`` from hidden states of ``dim`` channels.

    ``tails`` holds what convolutions keep between decode steps, by input; None outside of decoding.
    """

    def __init__(self, name: str, trailing: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.name, self.trailing, self.dim = name, trailing, dim

    def forward(self, x: Tensor, tails: Tails | None = None) -> Tensor:
        """``[B,T,dim]`` -> ``[B,T,*trailing]``."""
        raise NotImplementedError

    def shaped(self, x: Tensor) -> Tensor:
        """The last dim split into ``trailing``."""
        done: Tensor = x.unflatten(-1, self.trailing)
        return done


class Projected(Source):
    """A linear map, then a short convolution with silu if ``width`` is not 0."""

    def __init__(self, name: str, trailing: tuple[int, ...], dim: int, width: int = 0, bias: bool = False) -> None:
        super().__init__(name, trailing, dim)
        channels = math.prod(trailing)
        self.map = nn.Linear(dim, channels, bias=bias)
        self.convolution = ShortConvolution(channels, width) if width else None

    def forward(self, x: Tensor, tails: Tails | None = None) -> Tensor:
        y = self.map(x)
        if self.convolution is not None:
            y, tail = self.convolution(y, None if tails is None else tails.get(self.name))
            if tails is not None:
                tails[self.name] = tail
        return self.shaped(y)


class LowRank(Source):
    """Two linear maps through ``rank`` channels, with a bias at the end."""

    def __init__(self, name: str, trailing: tuple[int, ...], dim: int, rank: int = 16) -> None:
        super().__init__(name, trailing, dim)
        self.maps = nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, math.prod(trailing)))

    def forward(self, x: Tensor, tails: Tails | None = None) -> Tensor:
        return self.shaped(self.maps(x))


class ChannelDecay(LowRank):
    """Log-decays log σ(·) / 16 in fp32, of a low-rank map: GLA's (arXiv 2312.06635)."""

    def forward(self, x: Tensor, tails: Tails | None = None) -> Tensor:
        return logsigmoid(super().forward(x).float()) / 16


class HeadDecay(Source):
    """Log-decays −exp(A_log) softplus(linear + dt_bias) per head in fp32: Mamba-2's and Gated DeltaNet's.

    exp(A_log) is uniform in [1, 16], softplus(dt_bias) log-uniform in [0.001, 0.1].
    """

    def __init__(self, name: str, trailing: tuple[int, ...], dim: int) -> None:
        super().__init__(name, trailing, dim)
        self.map = nn.Linear(dim, math.prod(trailing), bias=False)
        self.A_log, self.dt_bias = nn.Parameter(rates(*trailing)), nn.Parameter(steps(*trailing))

    def forward(self, x: Tensor, tails: Tails | None = None) -> Tensor:
        return -self.A_log.float().exp() * softplus(self.shaped(self.map(x)).float() + self.dt_bias)


class FixedDecay(Source):
    """Log-decays log(1 − 2^(−5−h)) of head h, for every token: RetNet's."""

    def forward(self, x: Tensor, tails: Tails | None = None) -> Tensor:
        heads = torch.arange(math.prod(self.trailing), device=x.device, dtype=torch.float32)
        return (1 - torch.exp2(-5 - heads)).log().view(self.trailing).expand(*x.shape[:2], *self.trailing).contiguous()


class Rate(Projected):
    """The sigmoid of a linear map."""

    def forward(self, x: Tensor, tails: Tails | None = None) -> Tensor:
        return super().forward(x).sigmoid()


class Positive(Projected):
    """softplus of a linear map in fp32."""

    def forward(self, x: Tensor, tails: Tails | None = None) -> Tensor:
        return softplus(super().forward(x).float())


class Hidden(Source):
    """The hidden states themselves, which routers read."""

    def forward(self, x: Tensor, tails: Tails | None = None) -> Tensor:
        return self.shaped(x)


def rates(*shape: int) -> Tensor:
    """log of what is uniform in [1, 16]."""
    return torch.empty(shape).uniform_(1, 16).log()


def steps(*shape: int) -> Tensor:
    """What softplus takes to a log-uniform step in [0.001, 0.1]."""
    step = (torch.rand(shape) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)).exp()
    return step + (-torch.expm1(-step)).log()
