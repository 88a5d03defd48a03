"""Loads and stores of the tile interpreter, with every index checked against the tensor that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparsec.tile.language import Access, Node


class AccessError(IndexError):
    """A load or store that touches memory outside its tensor, or two programs that write one element differently."""


@dataclass(slots=True)
class Memory:
    """The tensors of one run.

    Attributes:
        tensors: the buffers by name.
        poison: what a load gives outside its bounds where nothing is asked for.
        owners: per stored tensor, the number of the grid point that wrote each element; -1 for none.
    """

    tensors: dict[str, Tensor]
    poison: float
    owners: dict[str, Tensor] = field(default_factory=dict)

    def load(self, node: Node, index: Sequence[Tensor], bounds: Sequence[Tensor]) -> Tensor:
        """The elements at broadcast indices; ``other`` or the poison outside the bounds."""
        access = access_of(node)
        tensor = self.tensors[access.tensor.name]
        inside, at = self._address(node, index, bounds)
        nothing = tensor.new_zeros(()).expand(torch.broadcast_shapes(*(i.shape for i in at)))
        values = nothing if inside is not None and not tensor.numel() else tensor[at]
        if inside is None:
            return values
        other = access.other
        if other is None:
            other = self.poison if tensor.is_floating_point() else 1 << 30
        return torch.where(inside, values, torch.tensor(other, dtype=tensor.dtype))

    def store(self, node: Node, index: Sequence[Tensor], bounds: Sequence[Tensor], value: Tensor, program: int) -> None:
        """Write inside the bounds; grid point ``program`` owns what it writes."""
        access = access_of(node)
        tensor = self.tensors[access.tensor.name]
        inside, at = self._address(node, index, bounds)
        shape = torch.broadcast_shapes(*(i.shape for i in at), value.shape)
        at = tuple(i.expand(shape) for i in at)
        value = value.to(tensor.dtype).expand(shape)
        if inside is not None:
            keep = inside.expand(shape)
            at, value = tuple(i[keep] for i in at), value[keep]
        if access.atomic:
            tensor.index_put_(at, value, accumulate=True)
        else:
            self._write(node, tensor, at, value, program)

    def _write(self, node: Node, tensor: Tensor, at: tuple[Tensor, ...], value: Tensor, program: int) -> None:
        name = access_of(node).tensor.name
        owner = self.owners.setdefault(name, torch.full(tensor.shape, -1, dtype=torch.int64))
        foreign = (owner[at] != -1) & (owner[at] != program)
        changed = foreign & ~_same(tensor[at], value)
        if changed.any():
            raise AccessError(f"{node!r}: grid point {program} overwrites elements of {name} that another one wrote")
        tensor[at] = value
        owner[at] = program
        if not _same(tensor[at], value).all():
            raise AccessError(f"{node!r}: one store writes different values to one element of {name}")

    def _address(
        self, node: Node, index: Sequence[Tensor], bounds: Sequence[Tensor]
    ) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """Which positions are inside, and indices that may be read everywhere."""
        access = access_of(node)
        inside: Tensor | None = None
        for dim, bound in zip(access.bounded, bounds, strict=True):
            below = index[dim] < bound
            inside = below if inside is None else inside & below
        shape = self.tensors[access.tensor.name].shape
        reached = inside is None or bool(inside.any())
        for dim, (i, size) in enumerate(zip(index, shape, strict=True)) if reached else ():
            _check(node, dim, i if inside is None else torch.where(inside, i, 0), size)
        if inside is None:
            return None, tuple(i.to(torch.int64) for i in index)
        return inside, tuple(torch.where(inside, i, 0).to(torch.int64) for i in index)


def access_of(node: Node) -> Access:
    """How a LOAD or STORE addresses memory."""
    access = node.attrs[0]
    assert isinstance(access, Access)
    return access


def _check(node: Node, dim: int, index: Tensor, size: int) -> None:
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= size:
        bad, tensor = low if low < 0 else high, access_of(node).tensor
        raise AccessError(
            f"{node!r}: index {bad} in dimension {dim} of {tensor.name} is outside 0 … {size - 1}; "
            f"give the access a bound, or keep the index in range"
        )


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | ((a != a) & (b != b))
