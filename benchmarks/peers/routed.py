"""Composition (c): sort (query, block) pairs by block, one variable-length flash attention over blocks, undo the sort.

MoBA as its authors run it: own block by causal attention, routed blocks by variable-length attention, merged by
log-sum-exp. HSA the same way, its chunks merged by the given weights.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sparsec.benchmarks.cases import Case, HsaCase, Inputs, MobaCase
from sparsec.benchmarks.peers.form import Compiler, Run
from sparsec.benchmarks.peers.selection import hsa_choice, moba_choice, product_fp32
from sparsec.benchmarks.peers.varlen import attend_varlen


def _route(block: Tensor, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Order of pairs by block, its inverse, and where each block's pairs start; pairs of no block (-1) come last."""
    ranked, order = torch.where(block < 0, blocks, block).int().flatten().sort()
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    starts = torch.searchsorted(ranked, torch.arange(blocks + 2, device=order.device, dtype=torch.int32))
    return order, inverse, starts.int()


def _key_starts(blocks: int, size: int, device: torch.device) -> Tensor:
    """Starts of the blocks' keys; the entry for pairs of no block is empty."""
    return (torch.arange(blocks + 2, device=device, dtype=torch.int32) * size).clamp_max(blocks * size)


def _global_block(index: Tensor, heads: int, blocks: int) -> Tensor:
    """Block ids [B, H, T, k] numbered over batch and key/value heads, -1 kept."""
    batch, queries = index.shape[:2]
    head = torch.arange(queries, device=index.device) * heads // queries
    base = (torch.arange(batch, device=index.device)[:, None] * heads + head) * blocks
    return torch.where(index < 0, -1, index + base[:, :, None, None])


def _flat_keys(tensor: Tensor) -> Tensor:
    """[B, T, HKV, D] as one sequence [B * HKV * T, 1, D]."""
    return tensor.transpose(1, 2).flatten(0, 2)[:, None].contiguous()


def _attend_pairs(
    take: Callable[..., Tensor], q: Tensor, block: Tensor, size: int, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend every pair to its block of keys: outputs and log-sum-exps by block, and each pair's place among them."""
    blocks = len(k) // size
    order, inverse, starts = _route(block, blocks)
    longest = int(starts.diff().max())
    key_starts = _key_starts(blocks, size, q.device)
    rows = take(q, order, block.shape[-1])
    out, lse = attend_varlen(rows, k, v, (starts, key_starts), (longest, size), causal=False)
    return out, lse, inverse.view(block.shape)


def _take_rows(q: Tensor, order: Tensor, per_query: int) -> Tensor:
    """The query of each pair."""
    return q[order // per_query]


def build_hsa(case: Case, inputs: Inputs, compiler: Compiler) -> Run:
    """HSA: a pair is (token, slot) with the G heads of the group."""
    assert isinstance(case, HsaCase)
    choose, number, take, combine = map(compiler, (hsa_choice, _global_block, _take_rows, _weighted_sum))
    r, landmarks = (inputs[name].transpose(1, 2) for name in ("r", "l"))

    def run() -> Tensor:
        index, weights = choose(product_fp32(r, landmarks.mT), case.chunk, case.k, case.retrieval)
        block = number(index, case.HKV, case.T // case.chunk)
        rows = torch.unflatten(inputs["q"], 2, (case.HKV, case.group)).transpose(1, 2).flatten(0, 2)
        k, v = _flat_keys(inputs["k"]), _flat_keys(inputs["v"])
        out, _, place = _attend_pairs(take, rows, block, case.chunk, k, v)
        summed: Tensor = combine(out, place, weights)
        return summed

    return run


def _weighted_sum(out: Tensor, place: Tensor, weights: Tensor) -> Tensor:
    """Sum outputs [pairs, G, D] at places [B, HKV, T, k] with weights into [B, T, H, D]; no chunk adds nothing."""
    slots = torch.where(weights[..., None, None] > 0, out[place].float(), 0.0)
    return (slots * weights[..., None, None]).sum(3).transpose(1, 2).flatten(2, 3).to(out.dtype)


def build_moba(case: Case, inputs: Inputs, compiler: Compiler) -> Run:
    """MoBA: a pair is (token, query head, slot); the heads of a group share their blocks' keys."""
    assert isinstance(case, MobaCase)
    choose, number, take, merge = map(compiler, (moba_choice, _global_block, _take_rows, _merge))
    q, k, v = (inputs[name] for name in "qkv")

    def run() -> Tensor:
        own, own_lse = _own_blocks(case, q, k, v)
        index = choose(q, k, case.block, case.k)
        rows = q.transpose(1, 2).flatten(0, 2)[:, None].contiguous()
        block = number(index, case.HKV, case.T // case.block)
        out, lse, place = _attend_pairs(take, rows, block, case.block, _flat_keys(k), _flat_keys(v))
        merged: Tensor = merge(own, own_lse, out, lse, place, index)
        return merged

    return run


def _own_blocks(case: MobaCase, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention inside each block: outputs [B, T, H, D] and log-sum-exps [B, T, H]."""
    starts = torch.arange(0, case.B * case.T + 1, case.block, device=q.device, dtype=torch.int32)
    longest = (case.block, case.block)
    out, lse = attend_varlen(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), (starts, starts), longest, causal=True)
    return out.view(q.shape), lse.view(q.shape[:3])


def _merge(own: Tensor, own_lse: Tensor, out: Tensor, lse: Tensor, place: Tensor, index: Tensor) -> Tensor:
    """One softmax over own block and routed blocks, from their outputs and log-sum-exps; pairs of no block drop out."""
    absent = index < 0
    routed = lse[place, 0].masked_fill(absent, -torch.inf)
    mass = torch.cat([own_lse.transpose(1, 2)[..., None], routed], -1).softmax(-1)
    used = torch.where(absent[..., None], 0.0, out[place, 0].float()) * mass[..., 1:, None]
    merged = used.sum(3) + own.transpose(1, 2).float() * mass[..., :1]
    return merged.transpose(1, 2).to(own.dtype)
