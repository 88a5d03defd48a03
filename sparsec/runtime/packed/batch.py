"""Packed tensors, which have no batch, as kernels take them: with a batch of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsec.plan.packed.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor


def batched(x: Tensor, at: Layout | None) -> Tensor:
    """A packed tensor with a batch of one; another as it is."""
    return x if at is None or at.along is None else x.unsqueeze(at.batch)


def unbatched(x: Tensor, at: Layout | None) -> Tensor:
    """The inverse of ``batched``."""
    return x if at is None or at.along is None else x.squeeze(at.batch)
