"""The hand-written tile programs as compiled kernels: against their references, and against the interpreter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsec.backends.tvm.build import compile
from sparsec.testing.tile.case import Case, Tensors
from sparsec.testing.tile.cases import CASES
from sparsec.tile.interpreter import interpret
from sparsec.tile.schedule import Schedule

NARROW = Schedule(vector=4, accumulators=8, unroll=2)
ROWS_LAST = Schedule(lanes=("n", "e", "d", "slot", "m"))
SCALAR = Schedule(lanes=())


def run(case: Case, schedule: Schedule, folder: Path) -> Tensors:
    """The tensors after the compiled program."""
    tensors = case.tensors()
    kernel = compile(case.program, schedule, folder)
    kernel([tensors[t.name] for t in case.program.tensors], case.params)
    return tensors


def check(case: Case, schedule: Schedule, folder: Path) -> None:
    """fp32 within the case's tolerance of the truth; halves within rounding of the interpreter."""
    found = run(case, schedule, folder)
    if all(t.dtype not in ("float16", "bfloat16") for t in case.program.tensors):
        assert case.error(found) <= case.tolerance
        return
    truth = case.tensors()
    interpret(case.program, truth, case.params)
    for name, want in truth.items():
        scale = 2.0**-7 if want.dtype is torch.bfloat16 else 2.0**-10 if want.dtype is torch.float16 else 4e-6
        torch.testing.assert_close(found[name], want, rtol=scale, atol=scale, equal_nan=True)


@pytest.mark.parametrize("name", CASES)
def test_compiled_programs_compute_what_they_say(name: str, tmp_path: Path) -> None:
    check(CASES[name](), Schedule(), tmp_path)


@pytest.mark.parametrize("name", ["window", "chunks", "prefix", "top_8_of_16", "axes", "gather"])
@pytest.mark.parametrize("schedule", [NARROW, ROWS_LAST, SCALAR], ids=["narrow", "rows_last", "scalar"])
def test_a_schedule_changes_no_result(name: str, schedule: Schedule, tmp_path: Path) -> None:
    check(CASES[name](), schedule, tmp_path)


def test_one_kernel_serves_every_length(tmp_path: Path) -> None:
    program = CASES["window"]().program
    for length in (1, 15, 16, 17, 50):
        case = replace(CASES["window_one_token"].func(length=length), program=program)  # type: ignore[attr-defined]
        check(case, Schedule(), tmp_path)
    assert len(list(tmp_path.glob("*.so"))) == 1
