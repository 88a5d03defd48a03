"""Cases of matrix states: references are the oracle, generated kernels pass them, and mistakes do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparsec.benchmarks.cases_scan import (
    DeltaCase,
    GdnCase,
    GdnLevelsCase,
    GlaCase,
    KdaCase,
    LevelsCase,
    Rwkv7Case,
    ScanCase,
)
from sparsec.benchmarks.gradients import GradientReferee, gradients
from sparsec.benchmarks.own import own
from sparsec.benchmarks.peers.table import forms_for
from sparsec.benchmarks.reference import truth
from sparsec.benchmarks.registry import CASES
from sparsec.benchmarks.step import Step
from sparsec.benchmarks.verdict import Referee
from sparsec.frontends.preset import preset
from sparsec.oracle import oracle

KINDS = (ScanCase, GlaCase, DeltaCase, GdnCase, KdaCase, Rwkv7Case, LevelsCase, GdnLevelsCase)


def small(kind: type[ScanCase], length: int = 150) -> ScanCase:
    return kind("small", 1, 2, 2, length, 16, device="cpu", dtype=torch.float32, train=True)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_references_are_the_oracles(kind: type[ScanCase]) -> None:
    case = small(kind)
    x = {name: tensor.double() for name, tensor in case.inputs(4).items()}
    leaves = {name: tensor.requires_grad_(name in case.learned) for name, tensor in x.items()}
    exact = oracle(preset(case.preset, **dict(case.knobs)), leaves)
    assert isinstance(exact, torch.Tensor)
    plain = {name: tensor.detach() for name, tensor in x.items()}
    torch.testing.assert_close(truth(case, plain, torch.arange(case.T)).output, exact.detach())
    rows, grad = torch.tensor([0, 17, 130]), torch.zeros_like(exact)
    grad[:, rows] = torch.randn(1, 3, 2, 16, dtype=torch.float64)
    wanted = torch.autograd.grad(exact, [leaves[n] for n in case.learned], grad)
    for mine, right in zip(gradients(case, plain, rows, grad).values(), wanted, strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("kind", [ScanCase, KdaCase], ids=lambda kind: kind.__name__)
def test_generated_kernels_pass_and_mistakes_do_not(kind: type[ScanCase]) -> None:
    case = small(kind, 80)
    inputs = case.inputs()
    step = own(case, inputs, 0)
    assert isinstance(step, Step)
    referee = Referee(case, inputs)
    assert referee(step()).passed and GradientReferee(case, inputs)(step)[1] == ""
    assert not referee(step() * 1.01).passed
    other = own(case, inputs | {"g": inputs["g"] * 1.1}, 0)
    assert not referee(other()).passed and isinstance(other, Step)
    assert GradientReferee(case, inputs)(other)[1] != ""


def test_the_published_shapes() -> None:
    for name in ("simple_gla", "gla", "delta", "gdn", "kda", "rwkv7"):
        case, trained = CASES[name], CASES[f"{name}_train"]
        assert (case.B, case.T, case.H, case.HKV, case.D) == (1, 16384, 16, 16, 128)
        assert trained == replace(case, name=trained.name, train=True)
        assert [str(form) for form in forms_for(case)] == ["fla/chunk"]
    assert CASES["gdn_t65536"].T == 65536
