"""From a call's launches and memory to the C++ object that makes it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from sparsec.backends.triton.packed import Packed


MOST = 128
"""Arguments that a launch has room for in C++."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a call reads and allocates.

    Attributes:
        inputs, outputs: examples, of which only layout, dtype and device are read.
        order: of the results among the outputs.
        block: an example of the memory of everything else, if there is anything.
        starts: bytes into the block, of all that lies there.
    """

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    order: Sequence[int]
    block: Tensor | None
    starts: Sequence[int]


def prepared(
    module: Any, launches: Sequence[tuple[Sequence[int], Callable[..., Any]]], memory: Memory, hooks: Any
) -> Any:
    """The C++ call; None where a launch is not known well enough.

    Args:
        module: as built.
        launches: the positions of a program's tensors among the addresses of inputs, outputs and ``memory.starts``,
            and its launch, which may tell how it is packed.
        hooks: what has ``launch_enter_hook`` and ``launch_exit_hook``.
    """
    made: list[tuple[object, ...]] = []
    for positions, again in launches:
        tell = getattr(again, "packed", None)
        packed = tell() if tell is not None else None
        if packed is None or len(packed.places) > MOST or not _as_the_driver_says(module, packed):
            return None
        made.append(_described(packed, positions))
    tensors = tuple(memory.inputs), tuple(memory.outputs)
    held = tuple(again for _, again in launches)
    return module.Call(*tensors, tuple(memory.order), memory.block, tuple(memory.starts), tuple(made), hooks, held)


def _as_the_driver_says(module: Any, packed: Packed) -> bool:
    """Whether the compiled kernel has arguments of these sizes, as far as the driver tells."""
    sizes = module.argument_sizes(packed.function)
    return sizes is None or sizes == packed.sizes


def _described(packed: Packed, positions: Sequence[int]) -> tuple[object, ...]:
    """A launch in the order that the C++ type reads."""
    pointers = tuple((place, positions[n]) for place, n in packed.pointers)
    maps = tuple((place, positions[n], encode) for place, n, encode in packed.maps)
    return packed.function, packed.grid, packed.threads, packed.shared, packed.block, packed.places, pointers, maps
