"""A kernel of a plan built under one schedule: its programs, its scratch buffers, and how to launch them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sparsec.lower import segments
from sparsec.lower.descriptors import without_roles
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.registry import lower_kernel
from sparsec.plan.plan import Kernel
from sparsec.plan.specs import GatheredAttention
from sparsec.runtime.env import Env
from sparsec.runtime.launch import Again, Run, build
from sparsec.runtime.target import Target
from sparsec.scalar.evaluate import evaluate
from sparsec.tile.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Fixed:
    """Launch parameters, and the scratch buffers as (name, shape, dtype), for one set of lengths."""

    params: dict[str, int]
    scratch: tuple[tuple[str, list[int], str], ...]


def lowered(kernel: Kernel, schedule: Schedule) -> tuple[Kernel, Lowered]:
    """The programs of a kernel under a schedule, those of a packed plan for documents, with its launch parameters."""
    if kernel.packed is None:
        return kernel, lower_kernel(kernel.spec, schedule)
    chosen = replace(schedule, documents=True) if Env().packed_chunks else schedule
    own = segments.schedule(kernel.spec, chosen)
    return segments.packed(kernel, lower_kernel(kernel.spec, own))


class BuiltKernel:
    """Ready to run on tensors by buffer name; ``own`` are its programs where others do some of its work."""

    def __init__(
        self, kernel: Kernel, schedule: Schedule, target: Target, cache_dir: Path, own: Lowered | None = None
    ) -> None:
        self.schedule, self.target, self.cache_dir = schedule, target, cache_dir
        self.kernel, self.lowered = lowered(kernel, schedule) if own is None else (kernel, own)
        shared = isinstance(kernel.spec, GatheredAttention)  # its other programs know the tiles, so these stay
        alike = self._alike if own is None and schedule.has_roles and not shared else None
        self._binds = [
            (step.program, build(step, target, cache_dir, alike and partial(alike, number)))
            for number, step in enumerate(self.lowered.steps)
        ]

    def _alike(self, number: int) -> Step:
        """A program under tiles for warps that all load and compute."""
        return lowered(self.kernel, without_roles(self.schedule))[1].steps[number]

    @property
    def tensors(self) -> list[tuple[str, ...]]:
        """The names of each program's tensors."""
        return [tuple(t.name for t in program.tensors) for program, _ in self._binds]

    def run(self, buffers: Mapping[str, Tensor], dims: Mapping[str, int]) -> None:
        """Launch on named buffers; ``dims`` are the declaration's dims and ``q_offset``. A GPU may not be done then."""
        self.prepared(buffers, dims)[0]()

    def prepared(
        self, buffers: Mapping[str, Tensor], dims: Mapping[str, int]
    ) -> tuple[Callable[[], None], dict[str, Tensor]]:
        """A launch on these buffers that can be repeated, all arguments worked out once, and its scratch buffers."""
        return self.bound(buffers, self.fixed(dims))

    def fixed(self, dims: Mapping[str, int]) -> Fixed:
        """What depends on the lengths alone."""
        params = {name: int(evaluate(value, dims)) for name, value in self.kernel.params}
        params |= {name: int(evaluate(value, params)) for name, value in self.lowered.params}
        scratch = [(s.name, [int(evaluate(d, params)) for d in s.shape], s.dtype) for s in self.lowered.scratch]
        return Fixed(params, tuple(scratch))

    def bound(self, buffers: Mapping[str, Tensor], fixed: Fixed) -> tuple[Callable[[], None], dict[str, Tensor]]:
        """As ``prepared``, for lengths that were worked out before."""
        launches, scratch = self.launches(buffers, fixed)

        def run() -> None:
            for _, launch in launches:
                launch()

        return run, scratch

    def launches(self, buffers: Mapping[str, Tensor], fixed: Fixed) -> tuple[list[tuple[str, Run]], dict[str, Tensor]]:
        """The name and the launch of each of its programs, in order, and its scratch buffers."""
        scratch = self._scratch(buffers, fixed)
        every = {**buffers, **scratch}
        return [(p.name, bind([every[t.name] for t in p.tensors], fixed.params)) for p, bind in self._binds], scratch

    @property
    def waits(self) -> int:
        """How many of its programs the first launch compiles."""
        return sum(bind.waits for _, bind in self._binds)

    def ahead(self, buffers: Mapping[str, Tensor], fixed: Fixed) -> None:
        """Have its programs compiled for these buffers; nothing is launched."""
        every = {**buffers, **self._scratch(buffers, fixed)}
        for program, bind in self._binds:
            if bind.waits:
                bind.ahead([every[t.name] for t in program.tensors], fixed.params)

    def learn(self, buffers: Mapping[str, Tensor], fixed: Fixed) -> list[tuple[tuple[str, ...], Again | None]]:
        """Launch once; per program the names of its tensors, and what launches it on others of the same layout."""
        every = {**buffers, **self._scratch(buffers, fixed)}
        named = zip(self.tensors, self._binds, strict=True)
        return [(names, bind.learn([every[n] for n in names], fixed.params)) for names, (_, bind) in named]

    def _scratch(self, buffers: Mapping[str, Tensor], fixed: Fixed) -> dict[str, Tensor]:
        import torch

        device = buffers[self.kernel.writes[0]].device
        return {n: torch.empty(shape, dtype=getattr(torch, d), device=device) for n, shape, d in fixed.scratch}
