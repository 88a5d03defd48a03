"""What a kernel's programs need beside its tensors: launch parameters worked out, scratch full of NaN or nonsense."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch

from sparsec.lower.lowered import Lowered
from sparsec.scalar.evaluate import evaluate

NONSENSE = -(10**9)
"""A number that no list holds."""


def with_scratch(
    lowered: Lowered,
    tensors: Mapping[str, torch.Tensor],
    params: Mapping[str, int],
    mode: Literal["exact", "storage"] = "storage",
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Tensors with the scratch buffers, fp32 ones as fp64 where the interpreter is exact, and all parameters."""
    dims = {**params, **{name: int(evaluate(value, params)) for name, value in lowered.params}}
    every = dict(tensors)
    for buffer in lowered.scratch:
        fill = NONSENSE if buffer.dtype.startswith("int") else math.nan
        shape = [int(evaluate(extent, dims)) for extent in buffer.shape]
        dtype = "float64" if (buffer.dtype, mode) == ("float32", "exact") else buffer.dtype
        every[buffer.name] = torch.full(shape, fill, dtype=getattr(torch, dtype))
    return every, dims
