"""The launches of a call, kernel by kernel, on buffers that stay: its forward and, where it trains, its backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsec.benchmarks.cases import Case, Inputs
from sparsec.benchmarks.cases_nsa import SelectorCase
from sparsec.benchmarks.laps import Run
from sparsec.benchmarks.own import given_to
from sparsec.benchmarks.selector import selector_ready
from sparsec.plan.plan import Kernel
from sparsec.runtime.compiled import Compiled
from sparsec.runtime.ready import Ready

Launches = list[tuple[Kernel, list[tuple[str, Run]]]]


@dataclass(frozen=True, slots=True)
class Half:
    """Launches by kernel, each by the name of its program.

    Attributes:
        held: the memory that they read and write.
    """

    name: str
    dims: Mapping[str, int]
    kernels: Launches
    held: Sequence[Mapping[str, Tensor]]


def halves(case: Case, compiled: Compiled, inputs: Inputs) -> list[Half]:
    """What a call of the case launches, in order, after all of it has run once."""
    given = given_to(inputs)
    if isinstance(case, SelectorCase):
        ready, taken = selector_ready(compiled, given)
        return [_half("forward", ready, taken)]
    tensors = [given[name] for name in compiled.names]
    ready = compiled.ready(tensors, None, compiled_wrt(case, compiled))
    forward = _half("forward", ready, tensors)
    if not case.train:
        return [forward]
    results = [forward.held[0][name] for name in ready.outputs]
    found = ready.halves
    assert found is not None
    kept = [*(tensors[n] for n in found.kept_inputs), *(results[n] for n in found.kept_results)]
    read = [*kept, *found.pulled([torch.randn_like(x) for x in found.given(results)])]
    return [forward, _half("backward", compiled.backward(found, read, ready.dims), read)]


def compiled_wrt(case: Case, compiled: Compiled) -> tuple[str, ...]:
    """The inputs whose gradients a step computes, in the declared order."""
    return tuple(name for name in compiled.names if case.train and name in case.learned)


def _half(name: str, ready: Ready, tensors: Sequence[Tensor]) -> Half:
    buffers = ready.run(dict(zip(ready.names, tensors, strict=True)))
    bound = [(k.kernel, k.launches(buffers, ready.fixed[k.kernel.name])) for k in ready.kernels]
    return Half(name, ready.dims, [(kernel, own) for kernel, (own, _) in bound], [buffers, *(s for _, (_, s) in bound)])
