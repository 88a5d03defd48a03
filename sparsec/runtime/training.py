"""Gradients of a compiled variant: a thin autograd function around two plans, and two operators for who traces it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsec.plan.sizes import static_names
from sparsec.runtime import bind, route
from sparsec.runtime.closer import Closer
from sparsec.runtime.joint import Joint, joint
from sparsec.runtime.known import TRACED
from sparsec.runtime.once import once
from sparsec.runtime.shapes import dims_of, empties

if TYPE_CHECKING:
    from sparsec.runtime.compiled import Compiled


class Training:
    """What a compiled variant needs beside its forward plan; made when a gradient is first required."""

    def __init__(self, compiled: Compiled) -> None:
        from sparsec.runtime.operator import register_halves

        self.compiled, self.parameters = compiled, compiled.graph.parameters
        self.static = static_names(self.parameters)
        self.dims = (*sorted({str(d.value) for n in self.parameters for d in n.shape if d.head == "var"}), "q_offset")
        self.operators = register_halves(compiled)
        self.closer = Closer(compiled)
        self._joints: dict[tuple[object, ...], Joint] = {}
        self._asked: dict[tuple[bool, ...], tuple[str, ...]] = {}

    def forward(self, tensors: Sequence[Tensor], q_offset: int | None = None) -> Sequence[Tensor]:
        """The variant's outputs, which remember how they came about. Raises PlanError where there is no backward."""
        route.refuse_transforms(self.compiled.variant.name)
        outputs: tuple[Tensor, ...] = _Attention.apply(self, q_offset, *tensors)  # type: ignore[no-untyped-call]
        return outputs

    def joint(self, dims: Mapping[str, Any], dtype: str, wrt: Sequence[str], packed: bool = False) -> Joint:
        """The halves for gradients of the inputs ``wrt``, for the heads and head dims among ``dims``.

        ``packed`` are those that packed calls are made of.
        """
        static = {n: int(dims[n]) for n in sorted(self.static) if n in dims}
        key = (dtype, packed, tuple(wrt), *static.values())
        if key not in self._joints:
            self._joints[key] = joint(self.compiled.graph, wrt, static, dtype, None if packed else self.compiled.target)
        return self._joints[key]

    def halves(self, dims: Mapping[str, Any], dtype: str, wrt: Sequence[str]) -> Joint:
        """Those that a call runs: under its schedules, but with names after ``TRACED`` as all calls have them."""
        if wrt[:1] == (TRACED,):
            return self.joint(dims, dtype, wrt[1:])
        return self.closer(self.joint(dims, dtype, wrt), dims)

    def traceable(self, halves: Joint, dims: Mapping[str, Any]) -> bool:
        """Whether a traced backward takes what these halves kept: those of an untraced forward may keep others."""
        return halves is self.joint(dims, halves.dtype, tuple(halves.gradients))

    def asked(self, wanted: tuple[bool, ...]) -> tuple[str, ...]:
        """The names of the inputs that require a gradient."""
        if wanted not in self._asked:
            self._asked[wanted] = tuple(n for n, w in zip(self.compiled.names, wanted, strict=True) if w)
        return self._asked[wanted]

    def run_backward(
        self, halves: Joint, kept: Sequence[Tensor], cotangents: Sequence[Tensor], dims: Mapping[str, int]
    ) -> list[Tensor]:
        """The gradients that are not zero, in order, from what the forward kept and the gradients of its outputs."""
        tensors = [*kept, *[x if x.is_contiguous() or _dense(x) else x.contiguous() for x in cotangents]]
        ready = self.compiled.backward(halves, tensors, dims)
        made = ready(tensors)
        if halves.direct:
            return made
        named = dict(zip((*ready.outputs, *ready.names), (*made, *tensors), strict=True))
        return [named[name] for name in halves.buffers]

    def bound(self, tensors: Sequence[Tensor], q_offset: Any) -> dict[str, Any]:
        """The sizes of ``dims`` in a call, which tracing may keep symbolic."""
        found = dims_of(self.parameters, tensors)
        found["q_offset"] = self.compiled.lengths.offset(found) if q_offset is None else q_offset
        return {name: found[name] for name in self.dims}

    def fake_forward(self, tensors: Sequence[Tensor], wrt: Sequence[str]) -> list[Tensor]:
        """Empty results of the forward half."""
        dims = dims_of(self.parameters, tensors)
        plan = self.joint(dims, bind.float_dtype(self.compiled.variant, tensors), wrt).split.forward
        return empties(plan, dict.fromkeys(plan.outputs), dims, tensors[0])

    def fake_backward(
        self, cotangents: Sequence[Tensor], dims: Mapping[str, Any], dtype: str, wrt: Sequence[str]
    ) -> list[Tensor]:
        """Empty gradients."""
        halves = self.joint(dims, dtype, wrt)
        return empties(halves.split.backward, halves.buffers, dims, cotangents[0])


class _Attention(torch.autograd.Function):
    """Outputs of the forward half; the backward half once their gradients are there."""

    @staticmethod
    def forward(ctx: Any, training: Training, q_offset: int | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        wrt = training.asked(ctx.needs_input_grad[2:])
        halves: Joint | None
        if route.traced(tensors):
            results: Sequence[Tensor] = training.operators[0](list(tensors), q_offset, ",".join(wrt))
            ctx.dims = training.bound(tensors, q_offset)
            halves = training.joint(ctx.dims, bind.float_dtype(training.compiled.variant, tensors), wrt)
        else:
            ready = training.compiled.ready(tensors, q_offset, wrt)
            results, ctx.dims, halves = ready(tensors), ready.dims, ready.halves
        assert halves is not None
        ctx.training, ctx.halves = training, halves
        ctx.save_for_backward(*[tensors[n] for n in halves.kept_inputs], *[results[n] for n in halves.kept_results])
        outputs = halves.given(results)
        if len(halves.differentiable) < len(outputs):
            ctx.mark_non_differentiable(*[x for n, x in enumerate(outputs) if n not in halves.differentiable])
        return tuple(outputs)

    @staticmethod
    @once
    def backward(ctx: Any, kept: Sequence[Tensor], grads: Sequence[Tensor]) -> Sequence[Any]:
        """The gradients of everything that ``forward`` was given."""
        training, halves = ctx.training, ctx.halves
        cotangents = halves.pulled(grads)
        found: Sequence[Tensor] = []
        if halves.wanted and route.traced([*kept, *cotangents]) and training.traceable(halves, ctx.dims):
            dims = [ctx.dims[name] for name in training.dims]
            found = training.operators[1](list(kept), cotangents, dims, halves.dtype, ",".join(halves.gradients))
        elif halves.wanted:
            found = training.run_backward(halves, kept, cotangents, ctx.dims)
        by_name = halves.by_input(found)
        return None, None, *[by_name.get(name) for name in training.compiled.names]


def _dense(x: Tensor) -> bool:
    """Whether a kernel can read it as it is: the last dimension dense, none repeated."""
    return not x.numel() or (x.stride(-1) == 1 and all(s or n == 1 for n, s in zip(x.shape, x.stride(), strict=True)))
