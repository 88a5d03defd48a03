"""The numbers that stand for a masked pair survive fused multiply-adds."""

from __future__ import annotations

import math

import pytest
import torch

from sparsec.lower.softmax import HIDDEN, LOG2E, NOTHING


@pytest.mark.parametrize("dim", [16, 48, 64, 80, 96, 128, 192, 576])
def test_a_masked_tile_has_weight_one_even_when_fused(dim: int) -> None:
    scale = torch.tensor(dim**-0.5 * LOG2E, dtype=torch.float32)
    rounded = torch.tensor(HIDDEN, dtype=torch.float32) * scale
    residual = HIDDEN * float(scale) - float(rounded)
    assert residual == 0.0, "exp2 of this is what a fused multiply-add gives a masked pair"
    assert float(rounded) < NOTHING and math.isfinite(float(rounded))
