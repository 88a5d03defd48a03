"""Gradients of packed calls: the autograd function around the two packed halves of a joint plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsec.runtime import bind, route
from sparsec.runtime.joint import Joint
from sparsec.runtime.once import once
from sparsec.runtime.packed.batch import batched, unbatched
from sparsec.runtime.packed.operator import call_dims, dim_names

if TYPE_CHECKING:
    from sparsec.runtime.packed.calls import PackedCalls
    from sparsec.runtime.packed.documents import Documents


class PackedTraining:
    """What packed calls need beside their forward plan."""

    def __init__(self, calls: PackedCalls) -> None:
        self.calls, self.compiled, self.names = calls, calls.compiled, calls.compiled.names
        name = self.compiled.packed_operator.name().partition("::")[2]
        self.operators = [getattr(torch.ops.sparsec, f"{name}_{half}").default for half in ("forward", "backward")]

    def forward(self, tensors: Sequence[Tensor], documents: Documents) -> Sequence[Tensor]:
        """The variant's outputs, which remember how they came about. Raises PlanError where there is no backward."""
        outputs: tuple[Tensor, ...] = _Packed.apply(self, documents, *tensors)  # type: ignore[no-untyped-call]
        return outputs

    def traced(self, tensors: Sequence[Tensor], ends: Sequence[Any]) -> Sequence[Tensor]:
        """As ``forward``, for who traces or calls the operator: ``ends`` are its arguments."""
        route.refuse_transforms(self.compiled.variant.name)
        if route.traced(tensors):
            outputs: tuple[Tensor, ...] = _Packed.apply(self, tuple(ends), *tensors)  # type: ignore[no-untyped-call]
            return outputs
        from sparsec.runtime.packed.operator import given_of

        return self.forward(tensors, self.calls.documents(tensors, given_of(ends)))

    def pulled(self, halves: Joint, tensors: Sequence[Tensor], dims: Mapping[str, int]) -> list[Tensor]:
        """The gradients that are not zero, in order, from what the backward half reads and the table."""
        ready = self.calls.backward(halves, tensors, dims)
        named = dict(zip((*ready.outputs, *ready.names), (*ready(tensors), *tensors), strict=True))
        return [named[buffer] for buffer in halves.buffers]


class _Packed(torch.autograd.Function):
    """Outputs of the forward half; the backward half once their gradients are there."""

    @staticmethod
    def forward(ctx: Any, training: PackedTraining, given: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        calls, compiled = training.calls, training.compiled
        wrt = compiled.training.asked(ctx.needs_input_grad[2:])
        halves: Joint | None
        if isinstance(given, tuple):
            *results, table = training.operators[0](list(tensors), *given, ",".join(wrt))
            ctx.dims = call_dims(compiled, tensors, given)
            dtype = bind.float_dtype(compiled.variant, tensors)
            halves = calls.halves(compiled.training.joint(ctx.dims, dtype, wrt, packed=True))
        else:
            views, table = calls.views(tensors), given.table
            ready = calls.ready(views, given, wrt)
            results, ctx.dims, halves = ready([*views, table]), ready.dims, ready.halves
        assert halves is not None
        ctx.training, ctx.halves = training, halves
        kept = [tensors[n] for n in halves.kept_inputs]
        ctx.save_for_backward(*kept, *[results[n] for n in halves.kept_results], table)
        outputs = [unbatched(x, at) for x, at in zip(halves.given(results), calls.results, strict=True)]
        if len(halves.differentiable) < len(outputs):
            ctx.mark_non_differentiable(*[x for n, x in enumerate(outputs) if n not in halves.differentiable])
        return tuple(outputs)

    @staticmethod
    @once
    def backward(ctx: Any, saved: Sequence[Tensor], grads: Sequence[Tensor]) -> Sequence[Any]:
        training, halves, (*kept, table) = ctx.training, ctx.halves, saved
        calls, count = training.calls, len(halves.kept_inputs)
        inputs = [batched(x, calls.layouts[n]) for n, x in zip(halves.kept_inputs, kept[:count], strict=True)]
        pairs = zip(halves.pulled(grads), halves.cotangents, strict=True)
        cotangents = [batched(x.contiguous(), calls.results[n]) for x, n in pairs]
        tensors = [*inputs, *kept[count:], *cotangents, table]
        found: Sequence[Tensor] = []
        if halves.wanted and route.traced(tensors):
            dims = [ctx.dims[name] for name in dim_names(training.compiled)]
            found = training.operators[1](tensors, dims, halves.dtype, ",".join(halves.gradients))
        elif halves.wanted:
            found = training.pulled(halves, tensors, ctx.dims)
        made = halves.by_input(found)
        packed = [(made.get(name), at) for name, at in zip(training.names, calls.layouts, strict=True)]
        return None, None, *[None if x is None else unbatched(x, at) for x, at in packed]
