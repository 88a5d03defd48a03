"""A kernel of a plan built under one schedule: its programs, its scratch buffers, and how to launch them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        self.prepared(buffers, dims)[0]()

    def prepared(
        self, buffers: Mapping[str, Tensor], dims: Mapping[str, int]
    ) -> tuple[Callable[[], None], dict[str, Tensor]]:
        """A launch on these buffers that can be repeated, its parameters worked out once, and its scratch buffers."""
        import torch

        params = self.params(dims)
        device = buffers[self.kernel.writes[0]].device
        scratch = {
            s.name: torch.empty(
                [int(evaluate(d, params)) for d in s.shape], dtype=getattr(torch, s.dtype), device=device
            )
            for s in self.lowered.scratch
        }
        every = {**buffers, **scratch}
        calls = [(launch, [every[t.name] for t in program.tensors]) for program, launch in self._launches]

        def run() -> None:
            for launch, tensors in calls:
                launch(tensors, params)

        return run, scratch

    def params(self, dims: Mapping[str, int]) -> dict[str, int]:
        """The launch parameters under the declaration's dims and ``q_offset``."""
        params = {name: int(evaluate(value, dims)) for name, value in self.kernel.params}
        return params | {name: int(evaluate(value, params)) for name, value in self.lowered.params}
