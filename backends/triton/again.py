"""Launching a compiled kernel again on other addresses: what Triton works out at every launch is worked out once.

Triton's own launch binds, specialises and looks up a kernel by all arguments, tens of microseconds. Where only
addresses change, and all of them are multiples of 16 as they were, the kernel it would find is the one that it found
before; its launcher takes addresses as integers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

_MOST_KEPT = 64

Again = Callable[[Sequence[int], int], None]
"""Launches on addresses in the program's order, on a raw stream of the current device."""


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


_CALL = (
    "kernel.run(grid_0, grid_1, grid_2, stream, kernel.function, kernel.packed_metadata, launch_metadata, "
    "knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook, *bound_args.values())"
)


@cache
def known() -> bool:
    """Whether the installed Triton launches a compiled kernel as this file does, as 3.6 to 3.9 do."""
    from triton.runtime.jit import JITFunction

    return _CALL in " ".join(inspect.getsource(JITFunction.run).split())


def again(compiled: Any, grid: Sequence[int], scalars: Sequence[Any], boxes: Sequence[Box]) -> Again:
    """Launches of a kernel that Triton compiled and launched before; ``scalars`` are its parameters and strides."""
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    x, y, z = (*grid, 1, 1)[:3]
    rest = tuple(scalars)

    def plain(pointers: Sequence[int], stream: int) -> None:
        run(x, y, z, stream, function, metadata, None, None, None, *pointers, *rest)

    def boxed(pointers: Sequence[int], stream: int) -> None:
        made = [box.at(pointers[box.position]) for box in boxes]
        run(x, y, z, stream, function, metadata, None, None, None, *pointers, *rest, *made)

    return boxed if boxes else plain


def current_stream() -> Callable[[int], int]:
    """Triton's way from a device's index to its raw current stream."""
    from triton.runtime.driver import driver

    found: Callable[[int], int] = driver.active.get_current_stream
    return found


def watched() -> Callable[[], bool]:
    """Whether somebody (a profiler) wants to hear of each launch, which only Triton's own launch tells them."""
    from triton import knobs

    runtime = knobs.runtime

    def found() -> bool:
        enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
        return bool(getattr(enter, "calls", enter)) or bool(getattr(leave, "calls", leave))

    return found
