"""The profile of a case's kernels: what it says where it cannot run. On a GPU: the kernels of the plan, each timed."""

from __future__ import annotations

import pytest
import torch

from sparsec.autotune.report import KernelReport
from sparsec.autotune.trial import Built, Trial
from sparsec.benchmarks.cases import WindowCase
from sparsec.benchmarks.kernels import kernel_times, main, sweep
from sparsec.benchmarks.own import own
from sparsec.ir.error import InputError
from sparsec.tile.schedule import Schedule


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["window"]) == 1
    assert "no GPU" in capsys.readouterr().err


def test_an_unknown_case_is_named() -> None:
    with pytest.raises(InputError, match="no such case"):
        main(["windwo"])


def test_a_sweep_lists_what_was_timed_and_why_the_rest_was_not(capsys: pytest.CaptureFixture[str]) -> None:
    base, wide = Schedule(rows=64), Schedule(rows=128)
    trials = (
        Trial(0, base, "timed", seconds=2e-3, built=Built(1.0, 96, 8, 1024)),
        Trial(1, Schedule(rows=32), "rejected", "wrong result", "o is off"),
        Trial(2, wide, "timed", seconds=1e-3),
        Trial(3, Schedule(rows=16), "lost"),
    )
    assert sweep(KernelReport("attend", wide, base, 1e-3, 2e-3, trials)) == [
        "attend: 3 schedules",
        "      1.000 ms  rows = 128",
        "      2.000 ms  the default; 96 registers, 8 spilled",
        "          –     rows = 32: wrong result, o is off",
    ]
    with pytest.raises(SystemExit):
        main(["window", "--sweep"])
    assert "--trials" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_kernel_of_the_plan_is_timed() -> None:
    case = WindowCase("window", 1, 4, 1, 512, 64)
    ((name, launches, ms), *_) = kernel_times(own(case, case.inputs(), 0))
    assert name.startswith("attend") and launches == 1 and ms > 0
