"""FlexAttention on given block lists: all of them under the causal mask, or the mask on the own block alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from sparsec.benchmarks.cases import Case, Inputs
from sparsec.benchmarks.cases_nsa import BlocksCase
from sparsec.benchmarks.peers.flex_lookup import block_lists
from sparsec.benchmarks.peers.form import Compiler, Form, Run
from sparsec.benchmarks.step import Step, leaves_of

Masked = Callable[[BlocksCase, Tensor], BlockMask]


def forms(_case: BlocksCase) -> list[Form]:
    """`masked` is the form of the published figure; the others leave past blocks without a mask."""
    tuned = "max-autotune-no-cudagraphs"
    return [
        _form("masked", _all_masked),
        _form("default", _own_masked),
        _form("tma", _own_masked, kernel={"USE_TMA": True}),
        _form("tuned", _own_masked, mode=tuned),
    ]


def _form(name: str, masked: Masked, kernel: dict[str, Any] | None = None, mode: str = "default") -> Form:
    def build(case: Case, inputs: Inputs, compiler: Compiler) -> Run:
        assert isinstance(case, BlocksCase)
        leaves, call = leaves_of(case, inputs, heads_first=True), compiler(flex_attention, mode=mode)
        mask = masked(case, _marked(case, inputs["indices"]))
        options = {"block_mask": mask, "enable_gqa": case.group > 1, "kernel_options": kernel}

        def forward() -> Tensor:
            out: Tensor = call(*leaves.values(), **options)
            return out

        return Step(case, forward, leaves, heads_first=True) if case.train else lambda: forward().transpose(1, 2)

    return Form("flex", name, build)


def _marked(case: BlocksCase, indices: Tensor) -> Tensor:
    """Which blocks of keys each block of queries lists: bool [B, H, T / block, T / block]."""
    lists = indices.transpose(1, 2).repeat_interleave(case.group, 1)
    count = case.T // case.block
    marked = torch.zeros(*lists.shape[:3], count + 1, dtype=torch.bool, device=lists.device)
    return marked.scatter_(-1, torch.where(lists < 0, count, lists).long(), True)[..., :count]


def _causal(_b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return j <= i


def _all_masked(case: BlocksCase, marked: Tensor) -> BlockMask:
    lengths = (case.T, case.T)
    return BlockMask.from_kv_blocks(*block_lists(marked), BLOCK_SIZE=case.block, mask_mod=_causal, seq_lengths=lengths)


def _own_masked(case: BlocksCase, marked: Tensor) -> BlockMask:
    own = torch.eye(marked.shape[-1], dtype=torch.bool, device=marked.device)
    lists, lengths = (*block_lists(marked & own), *block_lists(marked & ~own)), (case.T, case.T)
    return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=case.block, mask_mod=_causal, seq_lengths=lengths)
