"""How an exported file launches Triton kernels; its text is copied into the file."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor


def launch(
    kernel: Any, grid: tuple[int, ...], tensors: list[Tensor], params: list[int], limit: int, **options: int
) -> None:
    """Run a kernel: tensors, then parameters, then every stride but the last; strides up to ``limit`` fit 32 bits."""
    if 0 in grid:
        return
    strides = [stride for x in tensors for stride in x.stride()[:-1]]
    if max(strides, default=0) > limit:
        raise ValueError(f"a stride of {max(strides)} is beyond {limit}: make the tensors contiguous")
    device = tensors[0].device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*tensors, *params, *strides, enable_fp_fusion=True, **options)
