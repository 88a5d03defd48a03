"""NSA in fp64: windows of keys, the blocks that a group of heads chooses by them, and the two branches under gates."""

import math

import torch
from torch import Tensor

from sparsec.benchmarks.attention_fp64 import best, keys_of, softmax_over
from sparsec.benchmarks.cases import Inputs
from sparsec.benchmarks.cases_nsa import NsaCase


def nsa_output(case: NsaCase, x: Inputs, scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """One head's gated sum of compression and selection at some rows, and how decided the choice is."""
    i, j = keys_of(case, rows)
    chosen, gap = nsa_lists(case, x, rows)
    selected = softmax_over(scores, (j <= i) & chosen[:, (j // case.block)[0]]) @ x["v"]
    logits = x["q"][rows] @ _windows(case, x["k"]).T / math.sqrt(case.D)
    compressed = softmax_over(logits, _complete(case, rows)) @ _windows(case, x["v"])
    return x["g_cmp"][rows, None] * compressed + x["g_slc"][rows, None] * selected, gap


def nsa_lists(case: NsaCase, x: Inputs, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Chosen blocks of a group as bools [R, blocks], and how decided the choice among those not forced is."""
    queries, keys = x["group"].detach()[rows].double(), _windows(case, x["k"].detach()).to(case.dtype).double()
    logits = torch.einsum("rgd,nd->rgn", queries, keys) / math.sqrt(case.D)
    shares = softmax_over(logits, _complete(case, rows)[:, None]).sum(1)
    blocks = torch.arange(math.ceil(case.T / case.block), device=rows.device)
    own = (rows // case.block)[:, None]
    forced = (blocks == 0) | (blocks == own - 1) | (blocks == own)
    free = (blocks <= own) & ~forced
    # Where fewer than three blocks are forced, no others are eligible.
    chosen, gap = best(_worth(case, shares, blocks).masked_fill(~free, -math.inf), case.slots - 3)
    return chosen | (forced & (blocks <= own)), gap


def _windows(case: NsaCase, x: Tensor) -> Tensor:
    """Means [N, D] of windows of tokens; the last ones average what there is."""
    starts = torch.arange(0, case.T, case.stride, device=x.device)
    ends = (starts + case.size).clamp_max(case.T)
    sums = torch.cat([torch.zeros_like(x[:1]), x.cumsum(0)])
    return (sums[ends] - sums[starts]) / (ends - starts)[:, None]


def _complete(case: NsaCase, rows: Tensor) -> Tensor:
    """Which windows [R, N] end at or before each row."""
    starts = torch.arange(0, case.T, case.stride, device=rows.device)
    return starts + case.size - 1 <= rows[:, None]


def _worth(case: NsaCase, shares: Tensor, blocks: Tensor) -> Tensor:
    """Importance [R, blocks]: block j collects windows r j + m - n, 0 <= m < r, 0 <= n < size / stride.

    r is the number of windows that start in a block.
    """
    ratio, total = case.block // case.stride, shares.new_zeros(len(shares), len(blocks))
    for m in range(ratio):
        for n in range(case.size // case.stride):
            at = ratio * blocks + m - n
            inside = (at >= 0) & (at < shares.shape[1])
            total += torch.where(inside, shares[:, at.clamp(0, shares.shape[1] - 1)], 0.0)
    return total
