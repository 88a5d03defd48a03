"""Forward and backward of a call: the same halves however the backward is run, signs of gradients, what is kept."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sparsec
from sparsec.runtime.across import Together, apart
from sparsec.runtime.compiled import Compiled, compile


class _Watching(TorchDispatchMode):
    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return op(*args, **(kwargs or {}))


def _call() -> tuple[Compiled, dict[str, Tensor]]:
    made = compile(sparsec.preset("full"), "interpreter")
    x = sparsec.inputs(made.variant, dtype="float32", device="cpu", T=19, H=2, HKV=1, D=16, DV=16)
    return made, {name: tensor.requires_grad_() for name, tensor in x.items()}


def test_a_backward_under_a_mode_runs_the_halves_of_its_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target's own halves keep other tensors than those that traced calls have."""
    made, x = _call()
    monkeypatch.setattr(made.training, "closer", lambda halves, dims: replace(halves))
    monkeypatch.setattr(made.training, "operators", (None, None))
    out = made(**x)
    assert isinstance(out, Tensor)
    expected = torch.autograd.grad(out.square().sum(), list(x.values()), retain_graph=True)
    with _Watching():  # type: ignore[no-untyped-call]
        found = torch.autograd.grad(out.square().sum(), list(x.values()))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_gradients_of_outputs_that_negate_have_their_sign() -> None:
    made, x = _call()
    out = made(**x)
    assert isinstance(out, Tensor)
    grad = torch.randn_like(out)
    plain = torch.autograd.grad(out, list(x.values()), grad, retain_graph=True)
    turned = torch.autograd.grad(out, list(x.values()), torch._neg_view(grad))
    for a, b in zip(turned, plain, strict=True):
        torch.testing.assert_close(a, -b)


def test_programs_of_a_plan_are_kept_as_long_as_it_lives() -> None:
    made, _ = _call()
    together = Together()
    plan = replace(made.plan({"B": 1, "H": 2, "HKV": 1, "TQ": 19, "TK": 19, "D": 16, "DV": 16}, "float32"))
    schedules = {k.name: made.schedule(k, {"TQ": 19, "TK": 19}) for k in plan.kernels}
    lowered = apart(plan, schedules)
    together.fix(plan, lowered, schedules)
    assert together(plan, schedules) == (plan, lowered)
    del plan
    gc.collect()
    assert not together._fixed
