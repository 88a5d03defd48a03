"""The case of recursive sparse attention: its reference is the oracle, its kernels pass and mistakes do not."""

from __future__ import annotations

import torch

from sparsec.benchmarks.cases_rsa import RsaCase
from sparsec.testing.benchmark_case import hold_kernels_to_referees, hold_reference_to_oracle


def small(length: int) -> RsaCase:
    return RsaCase("small", 1, 2, 2, length, 16, device="cpu", dtype=torch.float32, train=True)


def test_the_reference_is_the_oracle() -> None:
    hold_reference_to_oracle(small(70), (0, 17, 69))


def test_generated_kernels_pass_and_mistakes_do_not() -> None:
    hold_kernels_to_referees(small(80), "c_1", lambda x: x + 1)
