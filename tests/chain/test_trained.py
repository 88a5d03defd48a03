"""Training on the CPU: gradients through torch's autograd, from compiled kernels, are the oracle's."""

from __future__ import annotations

import pytest

from sparsec.testing.whole.case import WholeCase
from sparsec.testing.whole.trained import wrong_gradients

CASES = [
    WholeCase("full-softcap-sink", (67, 67, None), (6, 2)),
    WholeCase("streaming", (67, 67, None), (3, 1), batch=2),
    WholeCase("msa-window", (23, 67, None)),
    WholeCase("bigbird", (67, 67, None), dims=(48, 32)),
    WholeCase("hsa", (67, 67, None), (5, 1)),
    WholeCase("hsa-window", (67, 67, None)),
    WholeCase("nsa", (67, 67, None), (16, 1)),
    WholeCase("moba", (67, 67, None)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients_on_the_cpu(case: WholeCase) -> None:
    assert wrong_gradients(case, "cpu") == []
