"""Cases of sparse state expansion: references are the oracle, generated kernels pass them, and mistakes do not."""

from __future__ import annotations

import pytest
import torch

from sparsec.benchmarks.cases_sse import MARGIN, SseCase, SseGdnCase
from sparsec.benchmarks.gradients import GradientReferee, gradients
from sparsec.benchmarks.own import own
from sparsec.benchmarks.reference import truth
from sparsec.benchmarks.registry import CASES
from sparsec.benchmarks.step import Step
from sparsec.benchmarks.verdict import Referee
from sparsec.frontends.preset import preset
from sparsec.oracle import oracle

KINDS = (SseCase, SseGdnCase)


def small(kind: type[SseCase], length: int) -> SseCase:
    return kind("small", 1, 2, 2, length, 16, device="cpu", dtype=torch.float32, train=True)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_references_are_the_oracles(kind: type[SseCase]) -> None:
    case = small(kind, 150)
    x = {name: tensor.double() for name, tensor in case.inputs(4).items()}
    leaves = {name: tensor.requires_grad_(name in case.learned) for name, tensor in x.items()}
    exact = oracle(preset(case.preset, **dict(case.knobs)), leaves, form="vector")
    assert isinstance(exact, torch.Tensor)
    plain = {name: tensor.detach() for name, tensor in x.items()}
    torch.testing.assert_close(truth(case, plain, torch.arange(case.T)).output, exact.detach())
    rows, grad = torch.tensor([0, 17, 130]), torch.zeros_like(exact)
    grad[:, rows] = torch.randn(1, 3, 2, 16, dtype=torch.float64)
    wanted = torch.autograd.grad(exact, [leaves[n] for n in case.learned], grad)
    for mine, right in zip(gradients(case, plain, rows, grad).values(), wanted, strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_generated_kernels_pass_and_mistakes_do_not(kind: type[SseCase]) -> None:
    case = small(kind, 80)
    inputs = case.inputs()
    step = own(case, inputs, 0)
    assert isinstance(step, Step)
    referee = Referee(case, inputs)
    assert referee(step()).passed and GradientReferee(case, inputs)(step)[1] == ""
    other = own(case, inputs | {"x": -inputs["x"]}, 0)
    assert not referee(other()).passed and isinstance(other, Step)
    assert GradientReferee(case, inputs)(other)[1] != ""


def test_choices_are_clear() -> None:
    for name in ("sse_n4", "sse_gdn_n32"):
        case = CASES[name]
        assert isinstance(case, SseCase) and CASES[f"{name}_train"].train
        few = type(case)(name, 1, 2, 2, 500, 16, device="cpu", parts=case.parts)
        x = few.inputs()
        best = (x["x"][:, :, 0].float() @ x["w"][:, 0].float().T).topk(2).values
        assert float((best[..., 0] - best[..., 1]).min()) > MARGIN
