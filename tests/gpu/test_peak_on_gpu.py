"""What a forward, and a forward with its backward, hold on the GPU that is here, beside what `explain` predicts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparsec.benchmarks.cases import Case, HsaCase, MobaCase, SelectedCase, WindowCase
from sparsec.benchmarks.cases_nsa import BlocksCase, NsaCase, SelectorCase
from sparsec.benchmarks.own import own
from sparsec.benchmarks.row import agrees
from sparsec.benchmarks.timing import peak_bytes

pytestmark = pytest.mark.gpu

SHAPE = (2, 32, 2, 8192, 64)
CASES: list[Case] = [
    WindowCase("window", *SHAPE),
    BlocksCase("blocks", *SHAPE),
    SelectedCase("selected", *SHAPE),
    NsaCase("nsa", *SHAPE),
    HsaCase("hsa", *SHAPE),
    MobaCase("moba", *SHAPE),
]
EVERY = [replace(c, name=f"{c.name}{'_train' if train else ''}", train=train) for c in CASES for train in (False, True)]


@pytest.mark.parametrize("case", [*EVERY, SelectorCase("selector", *SHAPE)], ids=lambda case: case.name)
def test_peak_memory_is_predicted_within_a_tenth(case: Case) -> None:
    run = own(case, case.inputs(), 0)
    for _ in range(2):
        run()
    measured = peak_bytes(run, case.device)
    assert agrees(run.predicted_peak_bytes, measured), (run.predicted_peak_bytes, measured)
