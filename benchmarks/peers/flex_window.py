"""FlexAttention on a causal window with memory tokens: default, max-autotune and TMA forms; block sizes on the CPU."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from sparsec.benchmarks.cases import Case, Inputs, WindowCase
from sparsec.benchmarks.peers.form import Compiler, Form, Run
from sparsec.benchmarks.step import Step, leaves_of


def forms(case: WindowCase) -> list[Form]:
    """The forms that count on the case's device, cheapest to compile first."""
    if case.device == "cpu":
        return [_form(f"block{size}", block=size) for size in (32, 64, 128)]
    tuned = "max-autotune-no-cudagraphs"
    return [_form("default"), _form("tma", kernel={"USE_TMA": True}), _form("tuned", mode=tuned)]


def _form(name: str, block: int = 128, kernel: dict[str, Any] | None = None, mode: str = "default") -> Form:
    def build(case: Case, inputs: Inputs, compiler: Compiler) -> Run:
        assert isinstance(case, WindowCase)
        leaves = leaves_of(case, inputs, heads_first=True)
        call = compiler(flex_attention, mode=mode)
        options = {"block_mask": _mask(case, block), "enable_gqa": case.group > 1, "kernel_options": kernel}

        def forward() -> Tensor:
            out: Tensor = call(*leaves.values(), **options)
            return out

        return Step(case, forward, leaves, heads_first=True) if case.train else lambda: forward().transpose(1, 2)

    return Form("flex", name, build)


def _mask(case: WindowCase, block: int) -> BlockMask:
    """The static mask, made once and outside the clock."""

    def visible(_b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & ((i - j < case.window) | (j < case.memory))

    made = create_block_mask(visible, None, None, case.T, case.T, device=case.device, BLOCK_SIZE=block)
    assert isinstance(made, BlockMask)
    if case.device == "cuda":
        torch.cuda.empty_cache()
    return made
