"""Loads and stores of the tile interpreter, with every index checked against the tensor that it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparsec.tile.build import FLOATS
from sparsec.tile.language import Node, Program, access_of

_STORED: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in ("int32", "int64", "bool", "bfloat16", "float16", "float32")
}


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

    def load(
        self, node: Node, index: Sequence[Tensor], bounds: Sequence[Tensor], among: Tensor | None = None
    ) -> Tensor:
        """The elements at broadcast indices; ``other`` or the poison outside the bounds and the lanes ``among``."""
        access = access_of(node)
        tensor = self.tensors[access.tensor.name]
        inside, at = self._address(node, index, bounds, among)
        if inside is None:
            return tensor[at]
        nothing = tensor.numel() == 0
        values = tensor.new_zeros(torch.broadcast_shapes(*(i.shape for i in at))) if nothing else tensor[at]
        other = access.other
        if other is None:
            other = self.poison if tensor.is_floating_point() else 1 << 30
        return torch.where(inside, values, torch.tensor(other, dtype=tensor.dtype))

    def store(
        self,
        node: Node,
        index: Sequence[Tensor],
        bounds: Sequence[Tensor],
        value: Tensor,
        programs: Tensor,
        among: Tensor | None = None,
    ) -> None:
        """Write inside the bounds and the lanes ``among``; its grid point, in ``programs``, owns the result."""
        access = access_of(node)
        tensor = self.tensors[access.tensor.name]
        inside, at = self._address(node, index, bounds, among)
        shape = torch.broadcast_shapes(*(i.shape for i in at), value.shape)
        shape = shape if inside is None else torch.broadcast_shapes(shape, inside.shape)
        at = tuple(i.expand(shape) for i in at)
        value = value.to(tensor.dtype).expand(shape)
        if inside is not None:
            keep = inside.expand(shape)
            at, value, programs = tuple(i[keep] for i in at), value[keep], programs.expand(shape)[keep]
        if access.atomic:
            tensor.index_put_(at, value, accumulate=True)
        else:
            self._write(node, tensor, at, value, programs.expand(value.shape))

    def _write(self, node: Node, tensor: Tensor, at: tuple[Tensor, ...], value: Tensor, programs: Tensor) -> None:
        name = access_of(node).tensor.name
        if name not in self.owners:
            self.owners[name] = torch.full(tensor.shape, -1, dtype=torch.int64)
        owner = self.owners[name]
        before = owner[at]
        foreign = (before != -1) & (before != programs)
        if foreign.any():
            _disagree(node, programs[foreign & ~_same(tensor[at], value)])
        tensor[at] = value
        owner[at] = programs
        lost = ~_same(tensor[at], value)
        if lost.any():
            winners = owner[at]
            _disagree(node, winners[lost & (winners != programs)])
            raise AccessError(f"{node!r}: one store writes different values to one element of {name}")

    def _address(
        self, node: Node, index: Sequence[Tensor], bounds: Sequence[Tensor], among: Tensor | None
    ) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """Which positions are inside, and indices that may be read everywhere."""
        access = access_of(node)
        inside = among
        for dim, bound in zip(access.bounded, bounds, strict=True):
            below = index[dim] < bound
            inside = below if inside is None else inside & below
        shape = self.tensors[access.tensor.name].shape
        return inside, tuple(_legal(node, dim, i, shape[dim], inside).to(torch.int64) for dim, i in enumerate(index))


def check_tensors(program: Program, tensors: Mapping[str, Tensor], exact: bool) -> None:
    """Refuse tensors that a program cannot run on, with ValueError; where it is exact, floats may have any dtype."""
    for t in program.tensors:
        if t.name not in tensors:
            raise ValueError(f"{program.name}: tensor {t.name} is missing; give one of rank {t.rank}, {t.dtype}")
        given = tensors[t.name]
        if given.dim() != t.rank:
            raise ValueError(f"{program.name}: {t.name} has shape {tuple(given.shape)}; it needs {t.rank} dimensions")
        fits = given.is_floating_point() if exact and t.dtype in FLOATS else given.dtype is _STORED[t.dtype]
        if not fits:
            raise ValueError(f"{program.name}: {t.name} is {given.dtype}, the program declares {t.dtype}; convert it")


def _legal(node: Node, dim: int, index: Tensor, size: int, inside: Tensor | None) -> Tensor:
    """An index as it is where it keeps to its dimension, else zero wherever nothing is accessed."""
    low, high = map(int, index.aminmax())
    if inside is not None and (low < 0 or high >= size):
        index = torch.where(inside, index, 0)
        low, high = map(int, index.aminmax()) if inside.any() else (0, size - 1)
    if low < 0 or high >= size:
        bad, tensor = low if low < 0 else high, access_of(node).tensor
        raise AccessError(
            f"{node!r}: index {bad} in dimension {dim} of {tensor.name} is outside 0 … {size - 1}; "
            f"give the access a bound, or keep the index in range"
        )
    return index


def _disagree(node: Node, programs: Tensor) -> None:
    """Refuse what these grid points wrote over others."""
    if programs.numel():
        name = access_of(node).tensor.name
        raise AccessError(
            f"{node!r}: grid point {int(programs[0])} overwrites elements of {name} that another one wrote"
        )


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | ((a != a) & (b != b))
