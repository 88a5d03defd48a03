"""Slots that a caller carries, read by a softmax of their own: a step reads those that there are."""

from __future__ import annotations

import pytest
import torch

import sparsec


@pytest.mark.parametrize("slots", [16, 100])
def test_carried_slots(slots: int) -> None:
    """Fewer and more than the cache has tokens."""
    variant = sparsec.preset("msa", window=32, slots=slots, slot_origin="carried", slot_softmax="gated")
    made = sparsec.compile(variant, target="interpreter")
    x = sparsec.inputs(variant, T=5, H=2, HKV=1, D=16, DV=16)
    torch.testing.assert_close(made.decode(made.init_cache(1, 64), **x), made(**x))
