"""A kernel of a plan built under one schedule: its programs, its scratch buffers, and how to launch them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sparsec.lower.registry import lower_kernel
from sparsec.plan.plan import Kernel
from sparsec.runtime.launch import build
from sparsec.runtime.target import Target
from sparsec.scalar.evaluate import evaluate
from sparsec.tile.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor


class BuiltKernel:
    """Ready to run on tensors by buffer name."""

    def __init__(self, kernel: Kernel, schedule: Schedule, target: Target, cache_dir: Path) -> None:
        self.kernel, self.schedule, self.target = kernel, schedule, target
        self.lowered = lower_kernel(kernel.spec, schedule)
        self._launches = [(step.program, build(step, target, cache_dir)) for step in self.lowered.steps]

    def run(self, buffers: Mapping[str, Tensor], dims: Mapping[str, int]) -> None:
        """Launch on named buffers; ``dims`` are the declaration's dims and ``q_offset``. Returns before a GPU is
        done."""
        import torch

        params = {name: int(evaluate(value, dims)) for name, value in self.kernel.params}
        params |= {name: int(evaluate(value, params)) for name, value in self.lowered.params}
        every = dict(buffers)
        device = buffers[self.kernel.writes[0]].device
        for scratch in self.lowered.scratch:
            shape = [int(evaluate(d, params)) for d in scratch.shape]
            every[scratch.name] = torch.empty(shape, dtype=getattr(torch, scratch.dtype), device=device)
        for program, launch in self._launches:
            launch([every[t.name] for t in program.tensors], params)
