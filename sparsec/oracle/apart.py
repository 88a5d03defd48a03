"""Tensors taken apart at once, for loops over tokens.

An index is a view whose gradient is a tensor of zeros as large as the whole: over T tokens work for T² of them. What is
taken apart together gets its gradient put together at once.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from torch import Tensor

Apart: TypeAlias = Any
"""A tuple of tuples of … of tensors: ``apart(x, 2)[i][j]`` is ``x[i, j]``."""


def apart(x: Tensor, depth: int) -> Apart:
    """The entries of a tensor by its first ``depth`` dimensions."""
    return tuple(apart(part, depth - 1) for part in x.unbind()) if depth else x
