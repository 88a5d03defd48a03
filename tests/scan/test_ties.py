"""Masses of one key alone point alike: of those that tie, the lowest level stays, however they were rounded."""

from __future__ import annotations

from typing import Any

import torch

import sparsec
from sparsec.ir.build_state import TIE
from sparsec.oracle import oracle
from sparsec.oracle.states import best
from sparsec.passes.expand_readout import expand_readout
from sparsec.testing.whole.trained import wrong_on

SIZES: dict[str, Any] = {"B": 2, "T": 9, "H": 2, "HKV": 1, "D": 16, "DV": 8, "DX": 4}


def test_the_best_states_of_tokens_whose_masses_tie() -> None:
    """The first token of a sequence, and of a part, is the only one in its masses."""
    variant = sparsec.preset("rsa", levels=4, branching=2, top=2)
    x = sparsec.inputs(variant, **SIZES)
    assert wrong_on(sparsec.compile(variant, target="interpreter"), x, "float32") == []
    torch.testing.assert_close(oracle(expand_readout(variant), x), oracle(variant, x))


def test_a_later_candidate_is_more_than_a_tie_above() -> None:
    score = torch.tensor([[0.0, 1.0, 1.0 + TIE / 2, 1.0 + 2 * TIE], [0.0, 1.0, 1.0 + TIE / 2, 1.0 - TIE]])
    kept = best(score.double(), 2, 1) > 0
    assert kept.tolist() == [[True, False, False, True], [True, True, False, False]]
