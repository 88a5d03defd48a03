"""Running lowered kernels in the tile interpreter on poisoned scratch buffers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import pytest
import torch

from sparsec.lower.lowered import Lowered
from sparsec.scalar.evaluate import evaluate
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
        dims = {"TK": 1, "q_offset": 0, **params}
        dims |= {name: int(evaluate(value, dims)) for name, value in lowered.params}
        every = dict(tensors)
        for buffer in lowered.scratch:
            fill = -(10**9) if buffer.dtype.startswith("int") else math.nan
            shape = [int(evaluate(extent, dims)) for extent in buffer.shape]
            dtype = "float64" if (buffer.dtype, mode) == ("float32", "exact") else buffer.dtype
            every[buffer.name] = torch.full(shape, fill, dtype=getattr(torch, dtype))
        for step in lowered.steps:
            interpret(step.program, every, dims, mode=mode)

    return go
