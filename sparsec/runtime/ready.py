"""A call worked out for one set of lengths: what remains is to allocate buffers and launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sparsec.plan.plan import Plan
from sparsec.runtime.kernel import BuiltKernel

if TYPE_CHECKING:
    from torch import Tensor


class Ready:
    """A plan with built kernels, concrete dims and the shapes of its buffers."""

    def __init__(self, plan: Plan, dims: Mapping[str, int], kernels: Sequence[BuiltKernel]) -> None:
        self.plan, self.dims = plan, dims
        self._made = [(b.name, b.size(dims), b.dtype) for b in plan.buffers if b.role != "input"]
        sizes = {name: size for name, size, _ in self._made}
        runs = all(0 not in sizes.get(name, ()) for name in plan.outputs)
        self._kernels = [(kernel, kernel.fixed(dims)) for kernel in kernels] if runs else []

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Allocate, launch every kernel, and give all buffers by name. A GPU may not be done then."""
        import torch

        device = next(iter(inputs.values())).device
        buffers = dict(inputs)
        for name, size, dtype in self._made:
            buffers[name] = torch.empty(size, dtype=getattr(torch, dtype), device=device)
        for kernel, fixed in self._kernels:
            kernel.bound(buffers, fixed)[0]()
        return buffers
