"""The case of recursive sparse attention: its reference is the oracle, its kernels pass and mistakes do not."""

from __future__ import annotations

import torch

from sparsec.benchmarks.cases_rsa import RsaCase
from sparsec.benchmarks.gradients import GradientReferee, gradients
from sparsec.benchmarks.own import own
from sparsec.benchmarks.reference import truth
from sparsec.benchmarks.step import Step
from sparsec.benchmarks.verdict import Referee
from sparsec.frontends.preset import preset
from sparsec.oracle import oracle


def small(length: int) -> RsaCase:
    return RsaCase("small", 1, 2, 2, length, 16, device="cpu", dtype=torch.float32, train=True)


def test_the_reference_is_the_oracle() -> None:
    case = small(70)
    x = {name: tensor.double() for name, tensor in case.inputs(4).items()}
    leaves = {name: tensor.requires_grad_(name in case.learned) for name, tensor in x.items()}
    exact = oracle(preset(case.preset, **dict(case.knobs)), leaves)
    assert isinstance(exact, torch.Tensor)
    plain = {name: tensor.detach() for name, tensor in x.items()}
    torch.testing.assert_close(truth(case, plain, torch.arange(case.T)).output, exact.detach())
    rows, grad = torch.tensor([0, 17, 69]), torch.zeros_like(exact)
    grad[:, rows] = torch.randn(1, 3, 2, 16, dtype=torch.float64)
    wanted = torch.autograd.grad(exact, [leaves[n] for n in case.learned], grad)
    for mine, right in zip(gradients(case, plain, rows, grad).values(), wanted, strict=True):
        torch.testing.assert_close(mine, right)


def test_generated_kernels_pass_and_mistakes_do_not() -> None:
    case = small(80)
    inputs = case.inputs()
    step = own(case, inputs, 0)
    assert isinstance(step, Step)
    referee = Referee(case, inputs)
    assert referee(step()).passed and GradientReferee(case, inputs)(step)[1] == ""
    other = own(case, inputs | {"c_1": inputs["c_1"] + 1}, 0)
    assert not referee(other()).passed and isinstance(other, Step)
    assert GradientReferee(case, inputs)(other)[1] != ""
