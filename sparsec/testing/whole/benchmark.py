"""What every benchmark case with its own reference must show: the reference is the oracle, mistakes do not pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparsec.benchmarks.cases import Case
from sparsec.benchmarks.gradients import GradientReferee, gradients
from sparsec.benchmarks.own import own
from sparsec.benchmarks.reference import truth
from sparsec.benchmarks.step import Step
from sparsec.benchmarks.verdict import Referee
from sparsec.frontends.preset import preset
from sparsec.oracle import oracle
from sparsec.oracle.form import FormName


def hold_reference_to_oracle(case: Case, rows: Sequence[int], form: FormName = "loop") -> None:
    """Assert that a case's fp64 reference gives the oracle's outputs, and its gradients under those of some rows."""
    x = {name: tensor.double() for name, tensor in case.inputs(4).items()}
    leaves = {name: tensor.requires_grad_(name in case.learned) for name, tensor in x.items()}
    exact = oracle(preset(case.preset, **dict(case.knobs)), leaves, form=form)
    assert isinstance(exact, Tensor)
    plain = {name: tensor.detach() for name, tensor in x.items()}
    torch.testing.assert_close(truth(case, plain, torch.arange(case.T)).output, exact.detach())
    some, grad = torch.tensor(rows), torch.zeros_like(exact)
    grad[:, some] = torch.randn(exact.shape[0], len(rows), *exact.shape[2:], dtype=torch.float64)
    wanted = torch.autograd.grad(exact, [leaves[n] for n in case.learned], grad)
    for mine, right in zip(gradients(case, plain, some, grad).values(), wanted, strict=True):
        torch.testing.assert_close(mine, right)


def hold_kernels_to_referees(case: Case, name: str, mistake: Callable[[Tensor], Tensor]) -> None:
    """Assert that generated kernels pass a case's referees, and fail them with a mistake in one input."""
    inputs = case.inputs()
    step = own(case, inputs, 0)
    assert isinstance(step, Step)
    referee = Referee(case, inputs)
    assert referee(step()).passed and GradientReferee(case, inputs)(step)[1] == ""
    assert not referee(step() * 1.01).passed
    other = own(case, inputs | {name: mistake(inputs[name])}, 0)
    assert not referee(other()).passed and isinstance(other, Step)
    assert GradientReferee(case, inputs)(other)[1] != ""
