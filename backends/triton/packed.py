"""A compiled kernel's arguments as its launch lays them out: bytes, where addresses go, and where tensor maps go."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sparsec.backends.triton.box import Box

FORMATS = {"i32": "i", "u32": "I", "i64": "q", "u64": "Q", "fp32": "f", "f32": "f"}
MOST_SHARED = 227 * 1024
"""Bytes of shared memory that a launch may ask for without a word to the driver."""

MAP_BYTES = 128


@dataclass(frozen=True, slots=True)
class Packed:
    """A launch without its addresses.

    Attributes:
        function: the driver's handle.
        grid, threads, shared: in blocks, threads per block, bytes.
        block: all arguments, each at its place in ``places`` and of its size, addresses and tensor maps as zeros.
        pointers: (place, position among the kernel's tensors) of each address.
        maps: (place, position of its tensor, what gives its 128 bytes for an address) of each tensor map.
    """

    function: int
    grid: tuple[int, int, int]
    threads: int
    shared: int
    block: bytes
    places: tuple[int, ...]
    sizes: tuple[int, ...]
    pointers: tuple[tuple[int, int], ...]
    maps: tuple[tuple[int, int, Callable[[int], bytes]], ...]


class _Writer:
    """Arguments one after the other, each at a multiple of its own alignment."""

    def __init__(self) -> None:
        self.block, self.places, self.sizes = bytearray(), list[int](), list[int]()

    def add(self, value: bytes, alignment: int) -> int:
        """The place of an argument."""
        self.block.extend(bytes(-len(self.block) % alignment))
        self.places.append(len(self.block))
        self.sizes.append(len(value))
        self.block.extend(value)
        return self.places[-1]

    def number(self, kind: str, value: Any) -> int:
        """The place of a number, or of an address as zero."""
        packed = struct.pack(FORMATS[kind], value)
        return self.add(packed, len(packed))


def packed(compiled: Any, grid: Sequence[int], scalars: Sequence[Any], boxes: Sequence[Box]) -> Packed | None:
    """What Triton's launcher would pass; None for a kernel that it launches in a way that is not known here."""
    metadata, kinds = compiled.metadata, list(compiled.src.signature.values())
    pointers = len(kinds) - len(scalars) - len(boxes)
    if not _simple(metadata) or not all(k.startswith("*") for k in kinds[:pointers]):
        return None
    numbers = kinds[pointers : len(kinds) - len(boxes)]
    if any(k not in FORMATS and k != "constexpr" for k in numbers):
        return None
    layouts = list(getattr(metadata, "tensordesc_meta", None) or [])
    if len(layouts) != len(boxes) or not all(layouts):
        return None
    made = _Writer()
    addresses = tuple((made.number("u64", 0), n) for n in range(pointers))
    for kind, value in zip(numbers, scalars, strict=True):
        if kind != "constexpr":
            made.number(kind, value)
    maps = tuple(_map(made, box, layout) for box, layout in zip(boxes, layouts, strict=True))
    made.number("u64", 0), made.number("u64", 0)  # global and profiling scratch, of which there is none
    x, y, z = (*grid, 1, 1)[:3]
    return Packed(
        compiled.function, (x, y, z), 32 * metadata.num_warps, metadata.shared, bytes(made.block), tuple(made.places),
        tuple(made.sizes), addresses, maps,
    )  # fmt: skip


def _simple(metadata: Any) -> bool:
    """Whether a launch has no attributes and no scratch memory of Triton's own."""
    wanted = ("launch_cooperative_grid", "launch_pdl", "global_scratch_size", "profile_scratch_size")
    odd = [getattr(metadata, name, None) for name in wanted]
    modes = getattr(metadata, "instrumentation_mode", "")
    return odd == [False, False, 0, 0] and metadata.num_ctas == 1 and metadata.shared <= MOST_SHARED and not modes


def _map(made: _Writer, box: Box, layout: Any) -> tuple[int, int, Callable[[int], bytes]]:
    """A tensor map, its shape and its strides."""
    example = box.at(0)
    place = made.add(bytes(MAP_BYTES), 64)
    for size in example.shape:
        made.number("i32", size)
    for stride in example.strides:
        made.number("i64", stride)
    return place, box.position, lambda address: _encoded(box.at(address), layout)


def _encoded(descriptor: Any, layout: Any) -> bytes:
    """The 128 bytes that Triton makes of a descriptor, which end the object that holds them."""
    from triton.backends.nvidia import driver

    more = driver.make_tensordesc_arg.__code__.co_argcount - 2
    made = driver.make_tensordesc_arg(descriptor, layout, *[None] * more)[0]
    return ctypes.string_at(id(made) + type(made).__basicsize__ - MAP_BYTES, MAP_BYTES)
