"""The case of LoLA: its reference is the oracle, generated kernels pass it, and mistakes do not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsec.benchmarks.cases_lola import LolaCase
from sparsec.benchmarks.groups import small
from sparsec.benchmarks.own import own
from sparsec.benchmarks.peers.table import forms_for
from sparsec.benchmarks.reference import truth
from sparsec.benchmarks.registry import CASES
from sparsec.benchmarks.verdict import Referee
from sparsec.frontends.preset import preset
from sparsec.oracle import oracle

SMALL = LolaCase("small", 1, 4, 2, 70, 16, window=16, keep=5, chunk=8, device="cpu", dtype=torch.float32)


def test_the_reference_is_the_oracle() -> None:
    x = {name: t.double() for name, t in SMALL.inputs(4).items()}
    exact = oracle(preset("lola", window=16, keep=5, chunk=8), x, form="vector")
    found = truth(SMALL, x, torch.arange(SMALL.T))
    assert isinstance(exact, Tensor)
    torch.testing.assert_close(found.output, exact)
    some = torch.tensor([3, 17, 18, 69])
    torch.testing.assert_close(truth(SMALL, x, some).output, exact[:, some])
    assert bool((found.gap[:, :24] == torch.inf).all()) and bool((found.gap[:, 24:] < 1).all())


@pytest.mark.parametrize(("change", "passes"), [({}, True), ({"fk": 1.01}, False), ({"v": 1.01}, False)])
def test_generated_kernels_pass_and_mistakes_do_not(change: dict[str, float], passes: bool) -> None:
    inputs = SMALL.inputs()
    wrong = {name: x * change.get(name, 1.0) for name, x in inputs.items()}
    assert Referee(SMALL, inputs)(own(SMALL, wrong, 0)()).passed is passes


def test_the_case_is_timed_beside_a_window() -> None:
    case = CASES["lola"]
    assert isinstance(case, LolaCase) and case.window < small(case).T
    (form,) = forms_for(case)
    assert str(form) == "sparsec/window" and form.case is not None and form.case.knobs == {"window": 128, "sinks": 128}
