"""The error measure accepts rounding and refuses what hides in one tile, in faint rows or behind infinities."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from sparsec.oracle.error import BOUNDS, check


def truth() -> torch.Tensor:
    return torch.randn(2, 130, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_rounding_is_accepted(name: str) -> None:
    exact = truth()
    assert check(exact.to(getattr(torch, name)), exact, name)


def test_a_wrong_tile_is_refused_though_the_tensor_is_right() -> None:
    exact = truth()
    actual = exact.clone()
    actual[1, 64:128, 2] *= 1.006
    verdict = check(actual, exact, torch.bfloat16)
    assert verdict.tensor < BOUNDS["bfloat16"]["o"][0]
    assert not verdict and verdict.tile == pytest.approx(0.006)
    assert "outside" in verdict.sentence and "6.00e-03" in verdict.sentence
    assert check(actual, exact, torch.bfloat16, "grad")


def test_the_last_short_tile_counts() -> None:
    exact = truth()
    actual = exact.clone()
    actual[0, 129, 0] += 0.1
    assert not check(actual, exact, "bfloat16")


def test_a_faint_tile_is_held_to_the_tensors_error() -> None:
    exact = truth()
    exact[0, :64, 0] *= 1e-5
    actual = exact.clone()
    actual[0, :64, 0] += 1e-4
    assert check(actual, exact, "bfloat16")
    actual[0, :64, 0] += 1e-2
    assert not check(actual, exact, "bfloat16")


def test_what_is_not_finite_must_agree() -> None:
    lse = truth()[..., 0]
    lse[0, :5] = -torch.inf
    lse[1, 7] = torch.nan
    assert check(lse.clone(), lse, "float32")
    wrong = torch.where(lse == -torch.inf, -1e30, lse)
    assert "first at (0, 0, 0)" in check(wrong, lse, "float32").sentence
    assert not check(torch.nan_to_num(lse), lse, "float32")


def test_zero_truth_needs_a_zero_result() -> None:
    nothing = torch.zeros(1, 4, 2, 8)
    assert check(nothing, nothing, "float32")
    assert not check(nothing + 1e-9, nothing, "float32")


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        check(truth()[:1], truth(), "float32")
    assert check(torch.ones(5), torch.ones(5), "float32")
    assert check(torch.ones(70, 4), torch.ones(70, 4), "float32")
    assert check(torch.ones(2, 0, 4, 8), torch.ones(2, 0, 4, 8), "float32")


@pytest.mark.parametrize(("dtype", "kind"), [("float23", "o"), (torch.int32, "o"), ("float16", "gradient")])
def test_what_has_no_bounds_is_refused(dtype: torch.dtype | str, kind: Literal["o", "grad"]) -> None:
    with pytest.raises(ValueError, match=f"no bounds for .*{kind}: dtypes are bfloat16, float16, float32, float64"):
        check(truth(), truth(), dtype, kind)
