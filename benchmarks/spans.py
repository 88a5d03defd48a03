"""A walk over tokens in spans, differentiable in memory that grows slowly; on a GPU a span is one replayed CUDA graph.

Token by token a truth is thousands of small kernels per span, and launching them takes longer than running them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Walk = Callable[..., Sequence[Tensor]]
"""States, then what some tokens bring -> the states after them, then what was found on the way."""


def walked(walk: Walk, states: Sequence[Tensor], given: Sequence[Tensor], span: int, axis: int) -> tuple[Tensor, ...]:
    """The states after all tokens, then what was found at each.

    Of `given` dim 1 counts tokens, of what is found dim `axis`. `walk` sees `span` tokens at a time, and may depend on
    nothing else. Between the spans states are kept for the gradient, which walks each span once more.
    """
    found: tuple[Tensor, ...] = _Spans.apply(walk, len(states), span, axis, *states, *given)  # type: ignore[no-untyped-call]
    return found


class _Spans(torch.autograd.Function):
    """Forward over the spans without a record, backward over them from the last."""

    @staticmethod
    def forward(ctx: Any, walk: Walk, count: int, span: int, axis: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        step, states, given = _Replayed(walk), tensors[:count], tensors[count:]
        starts, found = [], []
        for some in _spans(given, span):
            starts.append(states)
            *after, out = step(*states, *some)
            states = tuple(after)
            found.append(out)
        ctx.walk, ctx.span, ctx.axis, ctx.starts, ctx.given = walk, span, axis, starts, given
        return (*states, torch.cat(found, axis))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Gradients of the first states and of what each token brought."""
        count = len(ctx.starts[0]) + len(ctx.given)
        back, states, out = _Replayed(_pulled(ctx.walk, count)), grads[:-1], grads[-1]
        parts = list(zip(ctx.starts, _spans(ctx.given, ctx.span), torch.split(out, ctx.span, ctx.axis), strict=True))
        found = []
        for start, some, pulled in reversed(parts):
            every = back(*start, *some, *states, pulled)
            states = tuple(every[: len(start)])
            found.append(every[len(start) :])
        brought = [torch.cat(each, 1) for each in zip(*reversed(found), strict=True)]
        return None, None, None, None, *states, *brought


def _spans(given: Sequence[Tensor], span: int) -> list[tuple[Tensor, ...]]:
    return list(zip(*(torch.split(x, span, 1) for x in given), strict=True))


def _pulled(walk: Walk, count: int) -> Walk:
    """A walk's inputs, so many, then gradients of its results -> gradients of its inputs."""

    def pull(*tensors: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in tensors[:count]]
        with torch.enable_grad():
            grads = torch.autograd.grad(walk(*leaves), leaves, tensors[count:], allow_unused=True)
        return [torch.zeros_like(x) if grad is None else grad for x, grad in zip(leaves, grads, strict=True)]

    return pull


class _Replayed:
    """A function of tensors as CUDA graphs, one for each set of shapes; on other devices the function itself."""

    def __init__(self, function: Walk) -> None:
        self.function = function
        self.recorded: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], list[Tensor]]] = {}

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        if tensors[0].device.type != "cuda":
            return list(self.function(*tensors))
        key = tuple(x.shape for x in tensors)
        if key not in self.recorded:
            self.recorded[key] = self._record(tensors)
        graph, taken, made = self.recorded[key]
        for kept, x in zip(taken, tensors, strict=True):
            kept.copy_(x)
        graph.replay()
        return [x.clone() for x in made]

    def _record(self, tensors: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], list[Tensor]]:
        taken, aside = [x.detach().clone() for x in tensors], torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries allocate on their first call, which a graph cannot hold
            self.function(*taken)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            made = list(self.function(*taken))
        return graph, taken, made
