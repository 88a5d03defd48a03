"""The profile of a case's kernels: what it says where it cannot run. On a GPU: the kernels of the plan, each timed."""

from __future__ import annotations

import pytest
import torch

from sparsec.benchmarks.cases import WindowCase
from sparsec.benchmarks.kernels import kernel_times, main
from sparsec.ir.error import InputError


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["window"]) == 1
    assert "no GPU" in capsys.readouterr().err


def test_an_unknown_case_is_named() -> None:
    with pytest.raises(InputError, match="no such case"):
        main(["windwo"])


@pytest.mark.gpu
def test_a_kernel_of_the_plan_is_timed() -> None:
    ((name, launches, ms), *_) = kernel_times(WindowCase("window", 1, 4, 1, 512, 64), 0)
    assert name.startswith("attend") and launches == 1 and ms > 0
