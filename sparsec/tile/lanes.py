"""Tiles of several grid points side by side: lanes are a dimension before those of a tile's axes, if any differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from sparsec.tile.language import Axis


@cache
def spread(axes: tuple[Axis, ...], to: tuple[Axis, ...], lanes: bool = False) -> tuple[slice | None, ...]:
    """How a value over some axes is indexed to broadcast over others."""
    kept = tuple(slice(None) if axis in axes else None for axis in to)
    return (slice(None), *kept) if lanes else kept


def from_end(axes: tuple[Axis, ...], axis: Axis) -> int:
    """The dimension of an axis, counted from the end so that lanes do not matter."""
    return axes.index(axis) - len(axes)


def permuted(value: Tensor, order: Sequence[int]) -> Tensor:
    """The dimensions of axes in another order, lanes before them."""
    lanes = value.dim() - len(order)
    return value.permute([*range(lanes), *(lanes + position for position in order)])


def matrices(x: Tensor, axes: tuple[Axis, ...], sides: tuple[tuple[Axis, ...], tuple[Axis, ...]]) -> Tensor:
    """A tile as a matrix with some axes as its rows and the others as its columns; lanes before them."""
    shape = [math.prod(axis.size for axis in side) for side in sides]
    moved = permuted(x, [axes.index(axis) for side in sides for axis in side])
    return moved.reshape(*moved.shape[: x.dim() - len(axes)], *shape)


def product(x: Tensor, y: Tensor) -> Tensor:
    """Products of matrices ``[lane,] m, k`` and ``[lane,] k, n``, one by one: a lane's bits depend on it alone."""
    if x.dim() == y.dim() == 2:
        return x @ y
    lanes = max(x.shape[0] if x.dim() == 3 else 0, y.shape[0] if y.dim() == 3 else 0)
    left, right = (z if z.dim() == 3 else z.expand(lanes, *z.shape) for z in (x, y))
    made = x.new_empty(lanes, x.shape[-2], y.shape[-1])
    for a, b, out in zip(left.unbind(), right.unbind(), made.unbind(), strict=True):
        torch.mm(a, b, out=out)
    return made
