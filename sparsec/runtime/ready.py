"""A call worked out for one set of shapes, strides and dtypes: what remains is to allocate buffers and launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparsec.plan.plan import Plan
from sparsec.runtime.kernel import BuiltKernel
from sparsec.runtime.quick import Quick, quick

if TYPE_CHECKING:
    from torch import Tensor

    from sparsec.runtime.joint import Joint


class Ready:
    """A plan with built kernels, concrete dims and the shapes of its buffers.

    Attributes:
        names: of the inputs, in the order of a call's tensors.
        kernels: those that have something to write.
        outputs: shape and dtype of each distinct output by name.
        halves: the joint plan that it is a half of, if it is one.
        order: the place among them of each result of the variant; ``distinct`` where that says nothing.
    """

    def __init__(
        self, plan: Plan, dims: Mapping[str, int], kernels: Sequence[BuiltKernel], names: Sequence[str] = ()
    ) -> None:
        self.plan, self.dims, self.names = plan, dims, tuple(names)
        self._made = {b.name: (b.size(dims), b.dtype) for b in plan.buffers if b.role != "input"}
        self.outputs = {name: self._made[name] for name in dict.fromkeys(plan.outputs)}
        self.kernels = [k for k in kernels if any(0 not in self._made[name][0] for name in k.kernel.writes)]
        self.fixed = {kernel.kernel.name: kernel.fixed(dims) for kernel in kernels}
        self.order = [list(self.outputs).index(name) for name in plan.outputs]
        self.distinct = len(self.order) == len(self.outputs)
        self.halves: Joint | None = None
        self.quick: Quick | None = None

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The distinct outputs, in order, for inputs in order. A GPU may not be done then."""
        if self.quick is not None:
            outputs = self.quick.run(tensors)
            if outputs is not None:
                return outputs
        buffers = self._buffers(dict(zip(self.names, tensors, strict=True)))
        if self.quick is None:
            self._compile(buffers)
        if self.quick is None and _aligned(tensors):
            learned = [(k.kernel.name, k.learn(buffers, self.fixed[k.kernel.name])) for k in self.kernels]
            self.quick = quick(self, learned, tensors)
        else:
            self._launch(buffers)
        return [buffers[name] for name in self.outputs]

    @property
    def folder(self) -> Path:
        """Where its kernels were built."""
        return self.kernels[0].cache_dir

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Allocate, launch every kernel, and give all buffers by name. A GPU may not be done then."""
        buffers = self._buffers(inputs)
        self._launch(buffers)
        return buffers

    def _compile(self, buffers: Mapping[str, Tensor]) -> None:
        """Kernels that a GPU's first launch would compile one by one are compiled side by side."""
        first = next(iter(buffers.values()))
        if not first.is_cuda or sum(kernel.waits for kernel in self.kernels) < 2:
            return
        import torch

        from sparsec.backends.triton.together import together

        with torch.cuda.device(first.device), together() as can:
            for kernel in self.kernels if can else ():
                kernel.ahead(buffers, self.fixed[kernel.kernel.name])

    def _launch(self, buffers: Mapping[str, Tensor]) -> None:
        for kernel in self.kernels:
            kernel.bound(buffers, self.fixed[kernel.kernel.name])[0]()

    def _buffers(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs, and room for everything that kernels write."""
        import torch

        device = next(iter(inputs.values())).device
        buffers = dict(inputs)
        for name, (size, dtype) in self._made.items():
            buffers[name] = torch.empty(size, dtype=getattr(torch, dtype), device=device)
        return buffers


def _aligned(tensors: Sequence[Tensor]) -> bool:
    """Whether 16 divides every address on a GPU, as it must for a launch that others can follow."""
    return all(not x.is_cuda or x.data_ptr() % 16 == 0 for x in tensors)
