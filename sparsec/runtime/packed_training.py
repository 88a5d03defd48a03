"""Gradients of packed calls: the autograd function around the two packed halves of a joint plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparsec.runtime.packed import batched, unbatched

if TYPE_CHECKING:
    from sparsec.runtime.packed import PackedCalls
    from sparsec.runtime.packed_documents import Documents


class PackedTraining:
    """What packed calls need beside their forward plan."""

    def __init__(self, calls: PackedCalls) -> None:
        self.calls, self.names = calls, calls.compiled.names

    def forward(self, tensors: Sequence[Tensor], documents: Documents) -> Sequence[Tensor]:
        """The variant's outputs, which remember how they came about. Raises PlanError where there is no backward."""
        outputs: tuple[Tensor, ...] = _Packed.apply(self, documents, *tensors)  # type: ignore[no-untyped-call]
        return outputs


class _Packed(torch.autograd.Function):
    """Outputs of the forward half; the backward half once their gradients are there."""

    @staticmethod
    def forward(ctx: Any, training: PackedTraining, documents: Documents, *tensors: Tensor) -> tuple[Tensor, ...]:
        calls = training.calls
        wrt = calls.compiled.training.asked(ctx.needs_input_grad[2:])
        views = calls.views(tensors)
        ready = calls.ready(views, documents, wrt)
        results, halves = ready([*views, documents.table]), ready.halves
        assert halves is not None
        ctx.training, ctx.halves, ctx.dims, ctx.table = training, halves, ready.dims, documents.table
        ctx.save_for_backward(*[tensors[n] for n in halves.kept_inputs], *[results[n] for n in halves.kept_results])
        outputs = [results[n].squeeze(0) for n in halves.outputs]
        if len(halves.differentiable) < len(outputs):
            ctx.mark_non_differentiable(*[x for n, x in enumerate(outputs) if n not in halves.differentiable])
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        calls, halves, kept = ctx.training.calls, ctx.halves, ctx.saved_tensors
        if not halves.wanted:
            return None, None, *[None for _ in ctx.training.names]
        count = len(halves.kept_inputs)
        inputs = [batched(x, calls.layouts[n]) for n, x in zip(halves.kept_inputs, kept[:count], strict=True)]
        cotangents = [grads[n].contiguous().unsqueeze(0) for n in halves.cotangents]
        tensors = [*inputs, *kept[count:], *cotangents, ctx.table]
        ready = calls.backward(halves, tensors, ctx.dims)
        named = dict(zip((*ready.outputs, *ready.names), (*ready(tensors), *tensors), strict=True))
        found = []
        for name, at in zip(ctx.training.names, calls.layouts, strict=True):
            buffer = halves.gradients.get(name)
            made = None if buffer is None else named[buffer]
            found.append(None if made is None else unbatched(made, at))
        return None, None, *found
