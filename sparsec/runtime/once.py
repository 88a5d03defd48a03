"""Gradients that are computed once: whoever differentiates them again is told so, and gets no zeros instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

Pulled = Callable[[Any, Sequence[Tensor], Sequence[Tensor]], Sequence[Any]]
"""From a context, what it saved and the gradients of outputs to the gradients of inputs."""

RULE = "gradients of gradients have no kernels. Fix: leave create_graph out, or keep the layer out of that loss"


def once(pulled: Pulled) -> Callable[..., tuple[Any, ...]]:
    """The ``backward`` of an autograd function. Under ``create_graph`` its results refuse to be differentiated.

    torch's ``once_differentiable`` does so only where the gradients of outputs are differentiated: a penalty on the
    gradients of a sum would do nothing, and say nothing. It also takes microseconds to switch off what is off.
    """

    @wraps(pulled)
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        kept = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return tuple(pulled(ctx, kept, grads))
        with torch.no_grad():
            found = pulled(ctx, kept, grads)
        made = [x for x in found if isinstance(x, Tensor)]
        tied = iter(_Refusing.apply(len(made), *made, *kept, *grads))  # type: ignore[no-untyped-call]
        return tuple(next(tied) if isinstance(x, Tensor) else x for x in found)

    return backward


class _Refusing(torch.autograd.Function):
    """The first so many tensors as they are; they depend on all."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(f"gradients of a sparsec layer are differentiated again: {RULE}")
