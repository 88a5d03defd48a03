"""Composition (b): gather the chosen keys and values, then SDPA, over slices of queries that keep the copies small."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from sparsec.benchmarks.cases import Case, HsaCase, Inputs, MobaCase
from sparsec.benchmarks.peers.form import Compiler, Run
from sparsec.benchmarks.peers.selection import hsa_choice, moba_choice, product_fp32

SLICE_BYTES = 2**29


def _blocks(tensor: Tensor, size: int) -> Tensor:
    """[B, T, HKV, D] as a table of blocks [B * HKV * blocks, size, D]."""
    return torch.unflatten(tensor.transpose(1, 2), 2, (-1, size)).flatten(0, 2).contiguous()


def _table_rows(index: Tensor, heads: int, blocks: int) -> Tensor:
    """Rows of the table for block ids [B, H, n, k], H a multiple of the table's heads; -1 reads block 0."""
    batch, queries = index.shape[:2]
    head = torch.arange(queries, device=index.device) * heads // queries
    base = (torch.arange(batch, device=index.device)[:, None] * heads + head) * blocks
    return (base[:, :, None, None] + index.clamp_min(0)).flatten()


def _tokens_per_slice(case: Case, keys: int, sets: int) -> int:
    """Queries whose gathered keys fill SLICE_BYTES; `sets` lists of keys per token."""
    return max(1, min(case.T, SLICE_BYTES // (case.B * sets * keys * case.D * case.dtype.itemsize)))


def build_hsa(case: Case, inputs: Inputs, compiler: Compiler) -> Run:
    """HSA: every (token, slot) is a batch entry of G queries against one chunk."""
    assert isinstance(case, HsaCase)
    choose, step = compiler(hsa_choice), _tokens_per_slice(case, case.k * case.chunk, case.HKV)
    combine = compiler(_weighted_sum)
    q, r, landmarks = (inputs[x].transpose(1, 2) for x in ("q", "r", "l"))

    def attend(index: Tensor, weights: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        rows = _table_rows(index, case.HKV, case.T // case.chunk)
        grouped = torch.unflatten(queries, 1, (case.HKV, case.group)).transpose(2, 3)
        repeated = grouped[:, :, :, None].expand(-1, -1, -1, index.shape[-1], -1, -1).flatten(0, 3)
        out = sdpa(repeated[:, None], keys[rows][:, None], values[rows][:, None])
        summed: Tensor = combine(out, weights, case.dtype)
        return summed

    def run() -> Tensor:
        index, weights = choose(product_fp32(r, landmarks.mT), case.chunk, case.k, case.retrieval)
        keys, values = _blocks(inputs["k"], case.chunk), _blocks(inputs["v"], case.chunk)
        slices = zip(torch.split(index, step, 2), torch.split(weights, step, 2), torch.split(q, step, 2), strict=True)
        return torch.cat([attend(*part, keys, values) for part in slices], 1)

    return run


def _weighted_sum(out: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum the slots' outputs [B * HKV * n * k, 1, G, D] with weights [B, HKV, n, k] into [B, n, H, D]."""
    slots = out.reshape(*weights.shape, *out.shape[-2:])
    summed = (slots.float() * weights[..., None, None]).sum(3)
    return summed.transpose(1, 2).flatten(2, 3).to(dtype)


def build_moba(case: Case, inputs: Inputs, compiler: Compiler) -> Run:
    """MoBA: every (token, head) is a batch entry of one query against its own block and its chosen blocks."""
    assert isinstance(case, MobaCase)
    choose, step = compiler(moba_choice), _tokens_per_slice(case, case.k * case.block, case.H)
    q, blocks = inputs["q"].transpose(1, 2), case.T // case.block

    def attend(index: Tensor, queries: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        rows = _table_rows(index, case.HKV, blocks)
        last = position[:, None] - index * case.block
        seen = (torch.arange(case.block, device=index.device) <= last[..., None]) & (index >= 0)[..., None]
        fold = (index.shape[0] * index.shape[1] * index.shape[2], 1, -1)
        k, v = (table[rows].view(*fold, case.D) for table in (keys, values))
        out = sdpa(queries.reshape(*fold, case.D), k, v, attn_mask=seen.view(fold)[:, :, None])
        return out.view(queries.shape).transpose(1, 2)

    def run() -> Tensor:
        position = torch.arange(case.T, device=q.device)
        own = (position // case.block)[None, None, :, None].expand(case.B, case.H, -1, 1)
        index = torch.cat([own, choose(inputs["q"], inputs["k"], case.block, case.k)], -1)
        keys, values = _blocks(inputs["k"], case.block), _blocks(inputs["v"], case.block)
        slices = zip(torch.split(index, step, 2), torch.split(q, step, 2), torch.split(position, step), strict=True)
        return torch.cat([attend(*part, keys, values) for part in slices], 1)

    return run
