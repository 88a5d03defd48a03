"""The policies of selection: forced, eligible, ties, order, weights; and how near ties are told."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsec.oracle import loop, vector
from sparsec.oracle.gap import same_selection, selection_gap, ulp
from sparsec.oracle.selection import Choice
from sparsec.oracle.values import Chosen

FORMS: list[Any] = [loop, vector]


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 1, -1)


def flags(text: str) -> Tensor:
    return torch.tensor([letter == "x" for letter in text], dtype=torch.bool).reshape(1, 1, 1, -1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("score", "eligible", "forced", "choice", "wanted"),
    [
        ((1, 3, 2), "xxx", "...", Choice(2, 2), [1, 2]),
        ((1, 1, 1, 1), "xxxx", "....", Choice(3, 3), [0, 1, 2]),
        ((0.0, -0.0, 0.0), "xxx", "...", Choice(2, 2), [0, 1]),
        ((9, 3, 2), ".xx", "...", Choice(3, 3), [1, 2, -1]),
        ((9, 3, -math.inf), "x.x", "...", Choice(2, 2), [0, 2]),
        ((9, 3, 2, 1), "xxxx", "...x", Choice(2, 2), [3, 0]),
        ((math.inf, 3, 2, 1), "xxxx", "..xx", Choice(3, 3), [2, 3, 0]),
        ((9, 3, 2, 1), "xxx.", "...x", Choice(2, 2), [0, 1]),
        ((9, 3, 2, 1), "xxxx", "...x", Choice(2, 4, count_forced=False), [3, 0, 1, -1]),
        ((1, math.nan, 2), "xxx", "...", Choice(2, 2), [1, 2]),
        ((1, 3, 2, 5), "xxx.", "...", Choice(4, 4, order="newest"), [2, 1, 0, -1]),
        ((1, 3, 2, 5), "x.xx", "....", Choice(2, 4, order="oldest"), [2, 3, -1, -1]),
        ((), "", "", Choice(2, 2), [-1, -1]),
    ],
)
def test_policies(
    form: Any, score: tuple[float, ...], eligible: str, forced: str, choice: Choice, wanted: list[int]
) -> None:
    forced = forced.ljust(len(score), ".")[: len(score)]
    assert form.choose(row(*score), flags(eligible), flags(forced), choice).flatten().tolist() == wanted


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_the_chosen(form: Any) -> None:
    ids = torch.tensor([2, 0, -1]).reshape(1, 1, 1, -1)
    score, s0, s2 = row(0.5, 9, -1.0), torch.tensor(0.5), torch.tensor(-1.0)
    e0, e2 = math.exp(0.5), math.exp(-1)
    stick = [float(s2.sigmoid()), float((1 - s2.sigmoid()) * s0.sigmoid())]
    wanted = {
        "softmax": [e2 / (e0 + e2), e0 / (e0 + e2)],
        "softmax_sink": [e2 / (1 + e0 + e2), e0 / (1 + e0 + e2)],
        "stick": stick,
        "raw": [-1, 0.5],
        "sigmoid": [float(s2.sigmoid()), float(s0.sigmoid())],
    }
    for fn, values in wanted.items():
        assert form.weigh(score, ids, fn).flatten().tolist() == pytest.approx([*values, 0], abs=1e-6)


def test_a_stick_never_breaks_into_more_than_itself_and_survives_large_scores() -> None:
    score = row(800.0, -800.0, 40.0, 1e-3)
    for form in FORMS:
        weights = form.weigh(score, torch.tensor([1, 3, 2, 0]).reshape(1, 1, 1, -1), "stick")
        assert bool(weights.isfinite().all()) and float(weights.sum()) <= 1
        assert weights.flatten()[:2].tolist() == pytest.approx([0, 0.50025], abs=1e-5)


def chosen(score: Tensor, k: int, forced: str = "") -> Chosen:
    eligible, must = torch.ones_like(score) > 0, flags(forced.ljust(score.shape[-1], "."))
    return Chosen(loop.choose(score, eligible, must, Choice(k, k)), 1, score, eligible, must)


def test_the_gap_is_in_ulps_of_fp32() -> None:
    one = float(ulp(torch.tensor(1.0)))
    assert one == 2.0**-23
    assert float(selection_gap(chosen(row(3, 1 + 6 * one, 1, 0), 2))) == pytest.approx(6)
    assert float(selection_gap(chosen(row(3, 1, 1, 0), 2))) == 0
    assert float(selection_gap(chosen(row(3, 1), 2))) == math.inf
    assert float(selection_gap(chosen(row(0, 1, 2), 1, forced="x"))) == math.inf
    near = chosen(row(3, 1 + 6 * one, 1, 0), 2)
    assert float(selection_gap(near, magnitude=row(8, 8, 8, 8))) == pytest.approx(6 / 8)


def test_a_near_tie_may_fall_either_way_and_nothing_else() -> None:
    one = float(ulp(torch.tensor(1.0)))
    truth = chosen(row(3, 1 + 2 * one, 1, 0), 2)

    def fits(*ids: int) -> bool:
        return bool(same_selection(torch.tensor(ids).reshape(1, 1, 1, -1), truth))

    assert fits(0, 1) and fits(1, 0) and fits(0, 2) and fits(2, 0)
    assert not any([fits(0, 3), fits(1, 2), fits(0, -1), fits(0, 0), fits(2, 2)])
    far = chosen(row(3, 1 + 5 * one, 1, 0), 2)
    assert not bool(same_selection(torch.tensor([0, 2]).reshape(1, 1, 1, -1), far))
    must = chosen(row(3, 1, 1, 0), 2, forced=".x")
    assert not bool(same_selection(torch.tensor([0, 2]).reshape(1, 1, 1, -1), must))
