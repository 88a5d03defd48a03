"""Cases of sparse state expansion: references are the oracle, generated kernels pass them, and mistakes do not."""

from __future__ import annotations

import pytest
import torch

from sparsec.benchmarks.cases_sse import MARGIN, SseCase, SseGdnCase
from sparsec.benchmarks.registry import CASES
from sparsec.testing.whole.benchmark import hold_kernels_to_referees, hold_reference_to_oracle

KINDS = (SseCase, SseGdnCase)


def small(kind: type[SseCase], length: int) -> SseCase:
    return kind("small", 1, 2, 2, length, 16, device="cpu", dtype=torch.float32, train=True)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_references_are_the_oracles(kind: type[SseCase]) -> None:
    hold_reference_to_oracle(small(kind, 150), (0, 17, 130), form="vector")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_generated_kernels_pass_and_mistakes_do_not(kind: type[SseCase]) -> None:
    hold_kernels_to_referees(small(kind, 80), "x", lambda x: -x)


def test_choices_are_clear() -> None:
    for name in ("sse_n4", "sse_gdn_n32"):
        case = CASES[name]
        assert isinstance(case, SseCase) and CASES[f"{name}_train"].train
        few = type(case)(name, 1, 2, 2, 500, 16, device="cpu", parts=case.parts)
        x = few.inputs()
        best = (x["x"][:, :, 0].float() @ x["w"][:, 0].float().T).topk(2).values
        assert float((best[..., 0] - best[..., 1]).min()) > MARGIN
