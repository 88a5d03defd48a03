"""Composition (a): FlexAttention whose mask looks the selection up; block lists are rebuilt from it on each call.

MoBA is one call: `allowed[query, block]`. HSA has a softmax per chunk, which one flex call over tokens cannot express
(a joint softmax would need each chunk's log-sum-exp as a bias, so a dense pass before it). The honest form gives every
(token, head of the group, slot) its own row, so that a tile of rows needs few chunks; a weighted sum over slots
follows.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from sparsec.benchmarks.cases import Case, HsaCase, Inputs, MobaCase
from sparsec.benchmarks.peers.form import Compiler, Run
from sparsec.benchmarks.peers.selection import hsa_choice, moba_choice, product_fp32

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
ROWS = 128


def block_lists(marked: Tensor) -> tuple[Tensor, Tensor]:
    """Counts and ascending lists of the marked key blocks of each row tile, without a sort."""
    blocks = marked.shape[-1]
    place = torch.where(marked, marked.cumsum(-1) - 1, blocks)
    listed = torch.zeros(*marked.shape[:-1], blocks + 1, dtype=torch.int32, device=marked.device)
    ids = torch.arange(blocks, dtype=torch.int32, device=marked.device).expand(marked.shape)
    return marked.sum(-1, dtype=torch.int32), listed.scatter_(-1, place, ids)[..., :blocks].contiguous()


def _block_mask(lists: tuple[Tensor, Tensor], columns: int, lengths: tuple[int, int], visible: Mask) -> BlockMask:
    return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=(ROWS, columns), mask_mod=visible, seq_lengths=lengths)


def build_hsa(case: Case, inputs: Inputs, compiler: Compiler) -> Run:
    """HSA as rows of (token, head of the group, slot), each seeing one chunk."""
    assert isinstance(case, HsaCase)
    choose, lists, expand = map(compiler, (hsa_choice, _hsa_lists, _rows))
    call, combine, fold = compiler(flex_attention), compiler(_weighted_sum), case.group * case.k
    q, k, v, r, landmarks = (inputs[x].transpose(1, 2).contiguous() for x in ("q", "k", "v", "r", "l"))

    def run() -> Tensor:
        index, weights = choose(product_fp32(r, landmarks.mT), case.chunk, case.k, case.retrieval)

        def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return torch.eq(index[b, h, i // fold, i % case.k], j // case.chunk)

        rows = expand(q, case.HKV, case.k)
        made = lists(index, case.group, case.T // case.chunk)
        mask = _block_mask(made, case.chunk, (rows.shape[2], case.T), visible)
        out = call(rows, k, v, block_mask=mask, kernel_options={"BLOCK_N": min(case.chunk, 64)})
        summed: Tensor = combine(out, weights, case.group)
        return summed

    return run


def _rows(q: Tensor, heads: int, k: int) -> Tensor:
    """Queries [B, H, T, D] as rows of (token, head of the group, slot): [B, HKV, T * G * k, D]."""
    grouped = torch.unflatten(q, 1, (heads, -1)).transpose(2, 3)
    return grouped[..., None, :].expand(-1, -1, -1, -1, k, -1).flatten(2, 4)


def _hsa_lists(index: Tensor, group: int, chunks: int) -> tuple[Tensor, Tensor]:
    """Chunks that each tile of rows needs, from chosen chunks [B, HKV, T, k]."""
    rows = index.repeat_interleave(group, 2).flatten(2)
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[-1] % ROWS), value=-1)
    tiles = torch.unflatten(padded, -1, (-1, ROWS))
    marked = torch.zeros(*tiles.shape[:-1], chunks + 1, dtype=torch.bool, device=index.device)
    return block_lists(marked.scatter_(-1, torch.where(tiles < 0, chunks, tiles), True)[..., :chunks])


def _weighted_sum(out: Tensor, weights: Tensor, group: int) -> Tensor:
    """Sum slots [B, HKV, T * G * k, D] with weights [B, HKV, T, k] into [B, T, H, D]."""
    slots = torch.unflatten(out, 2, (weights.shape[2], group, weights.shape[3]))
    summed = (slots.float() * weights[:, :, :, None, :, None]).sum(4)
    return summed.permute(0, 2, 1, 3, 4).flatten(2, 3).to(out.dtype)


def build_moba(case: Case, inputs: Inputs, compiler: Compiler) -> Run:
    """MoBA in one call: a query sees its own block up to itself, and the blocks allowed to it."""
    assert isinstance(case, MobaCase)
    allow, lists, call = map(compiler, (_moba_allowed, _moba_lists, flex_attention))
    q, k, v = (inputs[x].transpose(1, 2).contiguous() for x in "qkv")

    def run() -> Tensor:
        allowed = allow(inputs["q"], inputs["k"], case.block, case.k)

        def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return torch.logical_and(j <= i, allowed[b, h, i, j // case.block])

        columns = min(ROWS, case.block)
        mask = _block_mask(lists(allowed, case.block, columns), columns, (case.T, case.T), visible)
        out: Tensor = call(q, k, v, block_mask=mask, enable_gqa=case.group > 1)
        return out.transpose(1, 2)

    return run


def _moba_allowed(q: Tensor, k: Tensor, block: int, count: int) -> Tensor:
    """Blocks allowed to each query, its own among them: bool [B, H, T, blocks]."""
    chosen = moba_choice(q, k, block, count)
    tokens, blocks = q.shape[1], k.shape[1] // block
    allowed = torch.zeros(*chosen.shape[:3], blocks + 1, dtype=torch.bool, device=q.device)
    allowed.scatter_(-1, torch.where(chosen < 0, blocks, chosen), True)
    own = torch.arange(tokens, device=q.device) // block
    allowed.scatter_(-1, own[None, None, :, None].expand(*chosen.shape[:3], 1), True)
    return allowed[..., :blocks]


def _moba_lists(allowed: Tensor, block: int, columns: int) -> tuple[Tensor, Tensor]:
    """Key blocks of `columns` that each tile of queries needs."""
    tiles = torch.unflatten(allowed, 2, (-1, ROWS)).any(3).repeat_interleave(block // columns, -1)
    starts = torch.arange(tiles.shape[-1], device=allowed.device) * columns
    lasts = torch.arange(tiles.shape[2], device=allowed.device)[:, None] * ROWS + ROWS - 1
    return block_lists(tiles & (starts <= lasts))
