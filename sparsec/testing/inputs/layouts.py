"""The same numbers in other memory layouts: kernels address by stride and must not care."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

SPARE = 8
"""Columns beyond a head's, so that rows stay aligned to 16 bytes in half precision."""


def bthd(x: Tensor) -> Tensor:
    """As declared, dense."""
    return x


def bhtd(x: Tensor) -> Tensor:
    """Heads before tokens in memory, read through a transposed view."""
    return x.transpose(1, 2).contiguous().transpose(1, 2) if x.ndim == 4 else x


def inset(x: Tensor) -> Tensor:
    """A window into a larger buffer of NaN (of an impossible index, for integers): what is read around it shows."""
    if x.ndim < 2:
        return x
    outside = torch.nan if x.is_floating_point() else torch.iinfo(x.dtype).min
    around = [2 * SPARE if d == x.ndim - 1 else 2 for d in range(x.ndim)]
    whole = x.new_full([size + more for size, more in zip(x.shape, around, strict=True)], outside)
    view = whole[tuple(slice(more // 2, more // 2 + size) for size, more in zip(x.shape, around, strict=True))]
    return view.copy_(x)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {"bthd": bthd, "bhtd": bhtd, "inset": inset}


def laid_out(inputs: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Inputs of a call in a layout of ``LAYOUTS``."""
    return {name: LAYOUTS[layout](x) for name, x in inputs.items()}
