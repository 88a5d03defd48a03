"""A kernel's tensor descriptors, made once for an address."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any

_MOST_KEPT = 64


@dataclass(frozen=True, slots=True)
class Address:
    """Stands in for a tensor in a descriptor, so that a kept descriptor keeps no memory."""

    pointer: int
    dtype: Any

    def data_ptr(self) -> int:
        """What Triton asks a tensor for."""
        return self.pointer


class Box:
    """The descriptors of one tensor of a kernel, kept by address."""

    def __init__(self, position: int, example: Any) -> None:
        self.position = position
        self._example = _moved(example, 0)
        self._made: dict[int, Any] = {}

    def at(self, pointer: int) -> Any:
        """The descriptor of the same shape and strides at an address."""
        found = self._made.get(pointer)
        if found is None:
            if len(self._made) >= _MOST_KEPT:
                self._made.clear()
            found = self._made[pointer] = _moved(self._example, pointer)
        return found


def _moved(descriptor: Any, pointer: int) -> Any:
    made = copy(descriptor)
    made.base = Address(pointer, descriptor.base.dtype)
    return made
