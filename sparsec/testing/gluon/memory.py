"""What printed Gluon reads and writes, without a GPU: addresses, boxes, shared memory, barriers with phases."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparsec.backends.triton.descriptors import Descriptor

PATIENCE = 20.0
"""Seconds after which a wait is taken to have no end."""


class Stuck(RuntimeError):
    """A barrier that no role completes."""


class Misused(RuntimeError):
    """A barrier that is arrived at more often than it counts: nobody waited for the phase before."""


@dataclass
class Barrier:
    """An mbarrier: a phase ends when all arrived and all expected bytes have landed."""

    bell: threading.Condition
    count: int = 0
    left: int = 0
    bytes: int = 0
    phase: int = 0
    copies: list[Callable[[], int]] = field(default_factory=list)
    broken: list[BaseException] = field(default_factory=list)

    def settle(self) -> None:
        """End the phase where nothing is left of it."""
        if self.left == 0 and self.bytes == 0:
            self.phase, self.left = self.phase + 1, self.count
            self.bell.notify_all()

    def arrive(self, count: int, more: int = 0) -> None:
        """Some of those that the barrier counts are there; ``more`` bytes are on their way."""
        with self.bell:
            if self.left < count:
                raise Misused(f"{count} arrive where phase {self.phase} of a barrier lacks {self.left}")
            self.left, self.bytes = self.left - count, self.bytes + more
            self.bell.notify_all()  # the last arrival may come behind the copies
            self.settle()

    def wait(self, parity: int) -> None:
        """Until the phase of this parity is over."""
        with self.bell:
            while self.phase & 1 == int(parity):
                if self.left == 0 and self.copies:
                    self.bytes -= self.copies.pop(0)()
                    self.settle()
                elif self.broken or not self.bell.wait(PATIENCE):
                    raise Stuck(f"a barrier stays in phase {self.phase}")


class Unfenced:
    """Tiles that threads wrote and that no fence has shown to products and copies of boxes."""

    def __init__(self) -> None:
        self._written: set[tuple[int, int]] = set()
        self._lock = threading.Lock()

    def write(self, tile: Tensor) -> None:
        """This thread has written a tile."""
        with self._lock:
            self._written.add((tile.data_ptr(), threading.get_ident()))

    def fence(self) -> None:
        """What this thread wrote is seen from here on."""
        with self._lock:
            self._written = {(tile, by) for tile, by in self._written if by != threading.get_ident()}

    def read(self, tile: Tensor) -> None:
        """Raises Misused for a tile that may not be there yet."""
        with self._lock:
            hidden = any(written == tile.data_ptr() for written, _ in self._written)
        if hidden:
            raise Misused("a tile is read by a product or a copy before a fence follows what wrote it")


@dataclass
class Shared:
    """A view of shared memory, or of the barriers in it."""

    data: Any
    unfenced: Unfenced = field(default_factory=Unfenced)

    def index(self, k: int) -> Shared:
        """One slot."""
        return Shared(self.data[int(k)], self.unfenced)

    def reshape(self, shape: Sequence[int]) -> Shared:
        """The same memory in another shape."""
        return Shared(self.data.view(*shape), self.unfenced)

    def store(self, value: Tensor) -> None:
        """Write the whole."""
        self.unfenced.write(self.data)
        self.data.copy_(value)

    def load(self, layout: object) -> Tensor:
        """Read the whole."""
        found: Tensor = self.data.clone()
        return found

    def permute(self, order: Sequence[int]) -> Shared:
        """The same memory, turned."""
        return Shared(self.data.permute(*order), self.unfenced)


@dataclass
class Pointer:
    """Addresses of elements of a tensor."""

    memory: Tensor
    offset: Any = 0

    def __add__(self, more: Any) -> Pointer:
        return Pointer(self.memory, self.offset + more)


@dataclass
class Box:
    """What a descriptor describes."""

    wanted: Descriptor
    tensor: Tensor

    def copy(self, starts: Sequence[int], to: Tensor) -> int:
        """Fill ``to`` from ``starts`` on, with zeros outside the tensor; the bytes that landed."""
        source, part = self.tensor.permute(*self.wanted.dims), torch.zeros_like(to)
        inside = [slice(int(s), int(s) + n) for s, n in zip(starts, self.wanted.block, strict=True)]
        found = source[tuple(inside)]
        part[tuple(slice(0, n) for n in found.shape)] = found
        to.copy_(part)
        return to.numel() * to.element_size()

    def put(self, starts: Sequence[int], what: Tensor) -> None:
        """Write what lies inside the tensor."""
        target = self.tensor.permute(*self.wanted.dims)
        inside = target[tuple(slice(int(s), int(s) + n) for s, n in zip(starts, self.wanted.block, strict=True))]
        inside.copy_(what[tuple(slice(0, n) for n in inside.shape)])


@dataclass
class Product:
    """A product under way."""

    compute: Callable[[], Tensor]
    result: Tensor | None = None


def _places(pointer: Pointer, mask: Any) -> tuple[Tensor, Tensor, Tensor]:
    memory = torch.as_strided(pointer.memory, (_reach(pointer.memory),), (1,))
    offsets = torch.as_tensor(pointer.offset)
    keep = torch.as_tensor(True if mask is None else mask).expand(offsets.shape)
    return memory, offsets, keep


def _reach(x: Tensor) -> int:
    return 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))


def load(pointer: Pointer, mask: Any = None, other: Any = 0) -> Tensor:
    """The elements at some addresses."""
    memory, offsets, keep = _places(pointer, mask)
    return torch.where(keep, memory[torch.where(keep, offsets, 0)], torch.tensor(other, dtype=memory.dtype))


def store(pointer: Pointer, value: Tensor, mask: Any = None) -> None:
    """Write elements, in the memory's dtype."""
    memory, offsets, keep = _places(pointer, mask)
    memory[offsets[keep]] = value.expand(offsets.shape)[keep].to(memory.dtype)
