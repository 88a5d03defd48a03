"""Where a tile of a map's result lies: some rows of one dim, one place in every other, all columns of the last one.

A result ``[B,N,heads,dim]`` is cut into tiles of tokens of one head, ``[B,N,heads]`` into tiles of tokens, all heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.pieces import Span
from sparsec.lower.scalars import add, ceil_div
from sparsec.plan.maps.map_specs import MapSource, Shape
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor
from sparsec.tile.schedule import Schedule

Column = Span | None
"""Some columns of the last dim; None where it has one."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A tile of the result.

    Attributes:
        row: the dim that is cut into tiles; None where the result has one dim.
        place: an index for every dim but the last.
        columns: what the last dim is split into.
    """

    shape: Shape
    row: int | None
    rows: Axis | None
    place: tuple[Node, ...]
    columns: list[Column]

    def access(self, shape: Shape, column: Column) -> tuple[tuple[Node, ...], dict[int, tile.Value]]:
        """The indices of this tile in a tensor that is aligned at its last dim, and what bounds them."""
        ahead = len(self.shape) - len(shape)
        index, bounds = [], dict[int, tile.Value]()
        for d, extent in enumerate(shape[:-1]):
            broadcast = extent == 1 != self.shape[d + ahead]
            index.append(tile.const(0) if broadcast else self.place[d + ahead])
            if d + ahead == self.row and not broadcast:
                bounds[d] = length(extent)
        return (*index, tile.const(0) if column is None else column.index()), bounds

    def read(self, source: MapSource) -> list[Node]:
        """A source in fp32, column by column; one where its last dim is broadcast."""
        tensor = Tensor(source.name, source.dtype, source.stored)
        found = []
        for column in self.own(source.shape):
            index, bounds = self.access(source.shape, column)
            index = index[: tensor.rank]
            found.append(tile.cast(tile.load(tensor, *index, bounds=bounds), "float32"))
        return found

    def own(self, shape: Shape) -> list[Column]:
        """The columns of a tensor: its own, or one where its last dim is broadcast."""
        return self.columns if shape[-1] == self.shape[-1] else [None]

    def write(self, tensor: Tensor, column: Column, value: Node, shape: Shape | None = None) -> None:
        """Store a tile, rounded to the tensor's dtype; ``shape`` is the tensor's with what is not stored."""
        index, bounds = self.access(tensor.shape if shape is None else shape, column)
        tile.store(tensor, *index[: tensor.rank], value=tile.cast(value, tensor.dtype), bounds=bounds)

    def zeros(self, column: Column) -> Node:
        """Zeros over every axis of some columns."""
        return zeros(self.rows, column)


@dataclass(frozen=True, slots=True)
class Layout:
    """The axes and the grid of the tiles of one result; see ``Frame``."""

    shape: Shape
    row: int | None
    rows: Axis | None
    columns: list[Column]

    def at(self, first: Node) -> Frame:
        """The tile of the program in hand that begins at a row."""
        others = {d: tile.program_id(n) for n, d in enumerate(self.others, 0 if self.row is None else 1)}
        here = {} if self.row is None or self.rows is None else {self.row: add(first, tile.iota(self.rows))}
        place = {**others, **here}
        return Frame(self.shape, self.row, self.rows, tuple(place[d] for d in sorted(place)), self.columns)

    @property
    def others(self) -> list[int]:
        """The dims that are neither cut into tiles nor columns, the innermost first."""
        return [d for d in reversed(range(len(self.shape) - 1)) if d != self.row]

    def grid(self, tile_rows: int) -> list[Node]:
        """Programs along each dim of the grid, where each has so many rows."""
        first = [] if self.row is None else [ceil_div(length(self.shape[self.row]), tile_rows)]
        return [*first, *(length(self.shape[d]) for d in self.others)] or [tile.const(1)]


def layout(builder: tile.Builder, shape: Shape, schedule: Schedule) -> Layout:
    """New axes for the tiles of a result."""
    row = cut(shape)
    rows = None if row is None else builder.axis("m", schedule.rows)
    width = shape[-1]
    assert isinstance(width, int)
    return Layout(shape, row, rows, columns(builder, "e", width, schedule))


def cut(shape: Shape) -> int | None:
    """The dim whose rows tiles are made of: tokens, else the last that is a number, else the first."""
    ahead = range(len(shape) - 1)
    tokens = [d for d in ahead if isinstance(shape[d], str) and shape[d] != "B"]
    numbers = [d for d in reversed(ahead) if isinstance(shape[d], int)]
    return next(iter([*tokens, *numbers, *ahead]), None)


def columns(builder: tile.Builder, name: str, width: int, schedule: Schedule) -> list[Column]:
    """The last dim as powers of two, or as one axis where the schedule takes any size."""
    if width == 1:
        return [None]
    sizes = [1 << bit for bit in reversed(range(width.bit_length())) if width >> bit & 1]
    sizes = sizes if schedule.split_dims else [width]
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    return [
        Span(start, builder.axis(f"{name}_{k}" if k else name, size))
        for k, (start, size) in enumerate(zip(starts, sizes, strict=True))
    ]


def zeros(rows: Axis | None, column: Column) -> Node:
    """A tile of zeros."""
    return tile.full(0.0, *([] if rows is None else [rows]), *([] if column is None else [column.axis]))


def length(extent: int | str) -> Node:
    """An extent as a scalar."""
    return tile.const(extent) if isinstance(extent, int) else tile.param(extent)


def params(shapes: Sequence[Shape]) -> list[tuple[str, str]]:
    """The launch parameters of a program over tensors of these shapes."""
    lengths = [n for shape in shapes for n in shape if isinstance(n, str)]
    return [(name, "int32") for name in dict.fromkeys(["B", "TQ", "TK", "q_offset", *lengths])]
