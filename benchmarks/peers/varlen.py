"""Flash attention over sequences of unequal length, with log-sum-exps: PyTorch's kernel on CUDA, else a loop."""

import math

import torch
from torch import Tensor

Starts = tuple[Tensor, Tensor]


def attend_varlen(
    q: Tensor, k: Tensor, v: Tensor, starts: Starts, longest: tuple[int, int], causal: bool
) -> tuple[Tensor, Tensor]:
    """Attend packed q [N, H, D] to packed k, v [M, HKV, D]: outputs [N, H, D] and log-sum-exps [N, H].

    `starts` are the sequences' first rows in q and k (int32, one more entry than sequences), `longest` their maxima.
    Rows of a sequence without keys hold whatever the kernel leaves; callers drop them.
    """
    if not q.is_cuda:
        return _attend_by_loop(q, k, v, starts, causal)
    scale = 1 / math.sqrt(q.shape[-1])
    call = torch.ops.aten._flash_attention_forward
    out, lse, *_ = call(q, k, v, *starts, *longest, 0.0, causal, False, scale=scale)
    return out, lse.T


def _attend_by_loop(q: Tensor, k: Tensor, v: Tensor, starts: Starts, causal: bool) -> tuple[Tensor, Tensor]:
    """The same, sequence by sequence."""
    group = q.shape[1] // k.shape[1]
    out, lse = torch.zeros_like(q), torch.zeros(q.shape[:2])
    for n in range(len(starts[0]) - 1):
        rows, keys = (slice(int(s[n]), int(s[n + 1])) for s in starts)
        k_heads, v_heads = (x[keys].repeat_interleave(group, 1).float() for x in (k, v))
        scores = torch.einsum("nhd,mhd->hnm", q[rows].float(), k_heads) / math.sqrt(q.shape[-1])
        if causal:
            scores.masked_fill_(torch.ones(scores.shape[1:]).triu(1).bool(), -math.inf)
        if scores.shape[-1]:
            out[rows] = torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v_heads).to(q.dtype)
            lse[rows] = scores.logsumexp(-1).T
    return out, lse
