"""The selectors of HSA and MoBA in plain PyTorch, shared by all compositions: fp32 scores, one array of T x chunks."""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sparsec.benchmarks.cases import HsaCase, Inputs, MobaCase


def hsa_selection(case: HsaCase, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Chosen chunks, newest first and -1 where too few exist, and their fp32 weights: both [B, HKV, T, k]."""
    r, landmarks = (inputs[name].transpose(1, 2) for name in ("r", "l"))
    return hsa_choice(product_fp32(r, landmarks.mT), case.chunk, case.k, case.retrieval)


def hsa_choice(scores: Tensor, chunk: int, k: int, retrieval: int) -> tuple[Tensor, Tensor]:
    """Top-k of complete past chunks and stick-breaking weights, from raw scores [B, HKV, T, chunks]."""
    tokens, chunks = scores.shape[-2:]
    ends = (torch.arange(chunks, device=scores.device) + 1) * chunk
    eligible = ends <= torch.arange(tokens, device=scores.device)[:, None]
    best, index = (scores / math.sqrt(retrieval)).masked_fill(~eligible, -math.inf).topk(min(k, chunks), -1)
    index, order = index.masked_fill(best == -math.inf, -1).sort(-1, descending=True)
    best = best.gather(-1, order)
    return index, (best - softplus(best).cumsum(-1)).exp()


def moba_selection(case: MobaCase, inputs: Inputs) -> Tensor:
    """The k - 1 best blocks before a query's own, -1 where too few exist: [B, H, T, k - 1]."""
    return moba_choice(inputs["q"], inputs["k"], case.block, case.k)


def moba_choice(q: Tensor, k: Tensor, block: int, count: int) -> Tensor:
    """Top count - 1 past blocks by q · mean(keys) in fp32, per query head."""
    means = torch.unflatten(k.float(), 1, (-1, block)).mean(2)
    grouped = torch.unflatten(q.float(), 2, (k.shape[2], -1))
    gates = torch.einsum("bthgd,bnhd->bhgtn", grouped, means).flatten(1, 2)
    own = torch.arange(q.shape[1], device=q.device)[:, None] // block
    past = torch.arange(means.shape[1], device=q.device) < own
    best, index = gates.masked_fill(~past, -math.inf).topk(min(count - 1, means.shape[1]), -1)
    return index.masked_fill(best == -math.inf, -1)


def product_fp32(a: Tensor, b: Tensor) -> Tensor:
    """Batched product of storage-dtype operands with fp32 results, on tensor cores where torch offers that."""
    if not a.is_cuda or a.dtype == torch.float32:
        return a.float() @ b.float()
    flat = torch.bmm(a.flatten(0, 1), b.flatten(0, 1), out_dtype=torch.float32)
    return torch.unflatten(flat, 0, a.shape[:2])
