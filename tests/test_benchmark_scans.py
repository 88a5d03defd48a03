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
    ProductCase,
    Rwkv7Case,
    ScanCase,
)
from sparsec.benchmarks.peers.table import forms_for
from sparsec.benchmarks.registry import CASES
from sparsec.testing.whole.benchmark import hold_kernels_to_referees, hold_reference_to_oracle

KINDS = (ScanCase, GlaCase, DeltaCase, GdnCase, KdaCase, Rwkv7Case, LevelsCase, GdnLevelsCase, ProductCase)


def small(kind: type[ScanCase], length: int = 150) -> ScanCase:
    return kind("small", 1, 2, 2, length, 16, device="cpu", dtype=torch.float32, train=True)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_references_are_the_oracles(kind: type[ScanCase]) -> None:
    hold_reference_to_oracle(small(kind), (0, 17, 130))


@pytest.mark.parametrize("kind", [ScanCase, KdaCase, ProductCase], ids=lambda kind: kind.__name__)
def test_generated_kernels_pass_and_mistakes_do_not(kind: type[ScanCase]) -> None:
    hold_kernels_to_referees(small(kind, 80), "g", lambda x: x * 1.1)


def test_the_published_shapes() -> None:
    for name in ("simple_gla", "gla", "delta", "gdn", "kda", "rwkv7", "delta_product"):
        case, trained = CASES[name], CASES[f"{name}_train"]
        assert (case.B, case.T, case.H, case.HKV, case.D) == (1, 16384, 16, 16, 128)
        assert trained == replace(case, name=trained.name, train=True)
        assert [str(form) for form in forms_for(case)] == ["fla/chunk"]
    assert CASES["gdn_t65536"].T == 65536
    assert (CASES["gdn_b64_train"].B, CASES["gdn_b64_train"].T, CASES["hsa_b64_train"].B) == (64, 2048, 64)


def test_a_reference_of_many_rows_is_the_oracle() -> None:
    hold_reference_to_oracle(replace(small(GdnCase, 40), B=9), (0, 17, 39))
