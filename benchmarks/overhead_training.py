"""What a training step costs the host beyond its launches: `python -m sparsec.benchmarks.overhead --train`.

As ``sparsec.benchmarks.overhead``, of a call that records and of the gradients of all its inputs, but in time that
passes: torch runs a GPU's backward in a thread of its own.

- forward: the call, recording;
- step: it and ``torch.autograd.grad`` of its outputs;
- Triton, C++: the launches of both halves alone;
- autograd: an empty ``torch.autograd.Function`` of the same tensors, forward and backward;
- over: the step without the launches as it makes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsec.benchmarks.overhead import CASES, Row, bare, bare_in_one_step, seconds, stub
from sparsec.frontends.preset import preset
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.inputs import inputs
from sparsec.runtime.ready import Ready


def as_tuple(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The outputs of a call."""
    return found if isinstance(found, tuple) else (found,)


class Step:
    """A training step of a variant on given inputs, and its two halves."""

    def __init__(self, compiled: Compiled, given: Mapping[str, Any]) -> None:
        self.compiled, self.given = compiled, given
        self.leaves = [x.requires_grad_() for x in given.values() if x.is_floating_point()]
        self.seeds = tuple(torch.randn_like(x) for x in self.forward())

    def forward(self) -> tuple[Tensor, ...]:
        """The outputs, recorded."""
        return as_tuple(self.compiled(None, **self.given))

    def __call__(self) -> tuple[Tensor | None, ...]:
        """The gradients of all inputs that have one."""
        pairs = [(x, seed) for x, seed in zip(self.forward(), self.seeds, strict=True) if x.requires_grad]
        outputs, seeds = zip(*pairs, strict=True)
        found: tuple[Tensor | None, ...] = torch.autograd.grad(outputs, self.leaves, seeds, allow_unused=True)
        return found

    def halves(self) -> list[tuple[Ready, list[Tensor]]]:
        """The calls that the step makes, each with what it reads."""
        with torch.no_grad():
            tensors = [self.given[n] for n in self.compiled.names]
            wrt = tuple(n for n in self.compiled.names if self.given[n].requires_grad)
            forward = self.compiled.ready(tensors, None, wrt)
            joint, results = forward.halves, forward(tensors)
            assert joint is not None
            kept = [tensors[n] for n in joint.kept_inputs] + [results[n] for n in joint.kept_results]
            kept += [self.seeds[n] for n in joint.cotangents]
            return [(forward, tensors), (self.compiled.backward(joint, kept, forward.dims), kept)]


def empty_function(leaves: Sequence[Tensor], outputs: Sequence[Tensor]) -> Callable[[], object]:
    """Forward and backward of a function that computes nothing."""
    made, seeds = [x.detach() for x in outputs], [torch.randn_like(x) for x in outputs]

    class Empty(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
            ctx.save_for_backward(*tensors)
            return tuple(x.detach() for x in made)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
            found: tuple[Tensor, ...] = ctx.saved_tensors
            return found

    return lambda: torch.autograd.grad(as_tuple(Empty.apply(*leaves)), leaves, seeds)  # type: ignore[no-untyped-call]


def measure(name: str, target: str, dtype: str) -> tuple[Row, int]:
    """One case in microseconds, and its number of launches."""
    compiled = compile(preset(name, **CASES[name]), target)
    device = compiled.target.device
    given = inputs(compiled.variant, T=64, H=4, HKV=1, D=64, DV=64, dtype=dtype, device=device)
    step = Step(compiled, given)
    step()
    calls = step.halves()
    if device != "cuda":
        for ready, tensors in calls:
            stub(compiled, ready, tensors)
    step()
    stream = torch.cuda.current_stream().cuda_stream if device == "cuda" else 0
    found = {
        "forward": seconds(step.forward, time.perf_counter),
        "step": seconds(step, time.perf_counter),
        "Triton": 0.0,
        "C++": 0.0,
    }
    for ready, tensors in calls:
        assert ready.quick is not None
        own = dict(zip(ready.names, tensors, strict=True))
        found["Triton"] += seconds(bare(ready.quick, own, stream))
        if ready.quick.native is not None:
            found["C++"] += seconds(bare_in_one_step(ready, ready.quick, own, compiled.tables.module))
    found["autograd"] = seconds(empty_function(step.leaves, step.forward()), time.perf_counter)
    found["over"] = found["step"] - (found["C++"] or found["Triton"])
    launches = sum(len(ready.quick.steps) for ready, _ in calls if ready.quick is not None)
    return {key: value * 1e6 for key, value in found.items()}, launches
