"""Running lowered kernels in the tile interpreter on poisoned scratch buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import pytest
import torch

from sparsec.lower.lowered import Lowered
from sparsec.testing.kernels.scratch import with_scratch
from sparsec.tile.interpreter import interpret

Run = Callable[..., None]


@pytest.fixture
def run() -> Run:
    """``run(lowered, tensors, params, mode)``: scratch buffers are made here, full of NaN or nonsense."""

    def go(
        lowered: Lowered,
        tensors: Mapping[str, torch.Tensor],
        params: Mapping[str, int],
        mode: Literal["exact", "storage"] = "storage",
    ) -> None:
        every, dims = with_scratch(lowered, tensors, {"TK": 1, "q_offset": 0, **params}, mode)
        for step in lowered.steps:
            interpret(step.program, every, dims, mode=mode)

    return go
