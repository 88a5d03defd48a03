"""Launching a compiled kernel again on other addresses: what Triton works out at every launch is worked out once.

Triton's own launch binds, specialises and looks up a kernel by all arguments, tens of microseconds. Where only
addresses change, and all of them are multiples of 16 as they were, the kernel it would find is the one that it found
before; its launcher takes addresses as integers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from sparsec.backends.triton.box import Box
from sparsec.backends.triton.packed import Packed, packed

Again = Callable[[Sequence[int], int], None]
"""Launches on addresses in the program's order, on a raw stream of the current device."""


_CALL = (
    "kernel.run(grid_0, grid_1, grid_2, stream, kernel.function, kernel.packed_metadata, launch_metadata, "
    "knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook, *bound_args.values())"
)


@cache
def known() -> bool:
    """Whether the installed Triton launches a compiled kernel as this file does, as 3.6 to 3.9 do."""
    from triton.runtime.jit import JITFunction

    return _CALL in " ".join(inspect.getsource(JITFunction.run).split())


class Relaunch:
    """Launches of a kernel that Triton compiled and launched before; ``scalars`` are its parameters and strides."""

    def __init__(self, compiled: Any, grid: Sequence[int], scalars: Sequence[Any], boxes: Sequence[Box]) -> None:
        self.compiled, self.grid, self.scalars, self.boxes = compiled, (*grid, 1, 1)[:3], tuple(scalars), tuple(boxes)
        self._run, self._function, self._metadata = compiled.run, compiled.function, compiled.packed_metadata

    def __call__(self, pointers: Sequence[int], stream: int) -> None:
        """Launch on addresses in the program's order, on a raw stream of the current device."""
        made = [box.at(pointers[box.position]) for box in self.boxes]
        fixed = (stream, self._function, self._metadata, None, None, None)
        self._run(*self.grid, *fixed, *pointers, *self.scalars, *made)

    def packed(self) -> Packed | None:
        """The launch without its addresses; None for a kernel that Triton launches in a way that is not known."""
        return packed(self.compiled, self.grid, self.scalars, self.boxes)


def nothing(pointers: Sequence[int], stream: int) -> None:
    """The launch of an empty grid."""


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
