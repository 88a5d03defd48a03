"""Where stored values live: one vector register per chunk, a buffer with the lane axis last, or a single cell."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.backends.tvm.demands import elements
from sparsec.backends.tvm.lanes import Lanes
from sparsec.backends.tvm.point import Point
from sparsec.backends.tvm.text import plus, times
from sparsec.tile.language import Axis

CELLS = {"float16": "float32", "bfloat16": "float32", "bool": "int32"}
"""How a dtype is computed and stored inside a kernel: halves as the float32 numbers that they are."""


def cell(dtype: str) -> str:
    """The dtype in which values of ``dtype`` are held."""
    return CELLS.get(dtype, dtype)


def typed(dtype: str, width: int) -> str:
    """The name of a vector type."""
    return f"{dtype}x{width}" if width > 1 else dtype


def spread(text: str, width: int) -> str:
    """A scalar in every lane."""
    return f"T.Broadcast({text}, {width})" if width > 1 else text


def span(name: str, offset: str, width: int, stride: str | int = 1) -> str:
    """Elements of a flat buffer, one per lane."""
    return f"{name}[T.Ramp({offset}, {stride}, {width})]" if width > 1 else f"{name}[{offset}]"


@dataclass(frozen=True, slots=True)
class Stored:
    """The place of one tile.

    Attributes:
        layout: the axes from the slowest to the fastest; () for a single cell.
        registers: one buffer per vector, named ``<name>_<chunk>``.
    """

    name: str
    dtype: str
    layout: tuple[Axis, ...]
    width: int
    registers: bool

    def at(self, point: Point) -> str:
        """The text of the tile's elements at a point; it can be read and assigned."""
        if self.registers:
            assert point.lane == self.layout[0] and point.start.isdigit(), (self.name, point)
            return span(f"{self.name}_{int(point.start) // self.width}", "0", self.width)
        offset, stride, along = "0", 1, 0
        for axis in reversed(self.layout):
            if axis == point.lane:
                along = stride
            offset = plus(times(point.start if axis == point.lane else point.rows[axis], stride), offset)
            stride *= axis.size
        return span(self.name, offset, point.width_of(self.layout), along)

    def buffers(self) -> list[tuple[str, int, str]]:
        """What has to be allocated: name, elements, dtype."""
        if self.registers:
            return [
                (f"{self.name}_{k}", self.width, cell(self.dtype)) for k in range(elements(self.layout) // self.width)
            ]
        return [(self.name, elements(self.layout), cell(self.dtype))]


def place(name: str, dtype: str, axes: tuple[Axis, ...], lane: Axis | None, indexed: bool, lanes: Lanes) -> Stored:
    """A place for a tile whose vectors lie along ``lane``; ``indexed`` tiles are also read element by element."""
    layout = tuple(a for a in axes if a != lane) + ((lane,) if lane in axes and lane is not None else ())
    width = lanes.width(lane) if lane in axes and lane is not None else 1
    registers = layout == (lane,) and width > 1 and not indexed and lane is not None and lanes.unrolled(lane)
    return Stored(name, dtype, layout, width, registers)
