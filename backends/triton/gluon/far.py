"""Places of rows that lie anywhere: worked out by a row's own threads in 64 bits, then handed to those that move it.

A thread that moves parts of eight rows would work out all eight, and so would fifteen others.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.backends.triton.access import mask, summed
from sparsec.backends.triton.address import split
from sparsec.backends.triton.gluon.layouts import PIECE, Laid
from sparsec.backends.triton.names import argument
from sparsec.tile.build import union
from sparsec.tile.language import Axis, Node, access_of
from sparsec.tile.schedule import ScheduleError


@dataclass(frozen=True, slots=True)
class Far:
    """Where the rows of an access are.

    Attributes:
        base: the pointer that rows are counted from.
        row: the distance of each row in pieces of eight numbers, -1 for those that are not there.
        columns: the axis along a row.
    """

    base: str
    row: str
    columns: Axis

    def lines(self, move: str, more: str = "") -> list[str]:
        """``move(…, pointers, more, mask)`` by threads that have pieces of rows."""
        columns = f"tl.arange(0, {self.columns.size}, tl.SliceLayout(0, LOADS))[None, :]"
        return [
            f"row = tl.convert_layout({self.row}, tl.SliceLayout(1, LOADS))[:, None]",
            f"{move}{self.base} + (row * {PIECE} + {columns}){more}, mask=row >= 0)",
        ]


def far(speaker: Laid, node: Node, rows: Axis) -> Far:
    """The places of an access whose last dimension is a row's own. Raises ScheduleError for any other."""
    tensor, scalars, tiles = access_of(node).tensor, [argument(access_of(node).tensor.name)], list[str]()
    for dim, arg in enumerate(node.args[: tensor.rank]):
        index, stride = split(arg), "" if dim == tensor.rank - 1 else f" * {tensor.name}_s{dim}"
        axes = union(*(t.node for t in index.tiles if t.node is not None))
        if index.scalars:
            scalars.append(f"{summed(speaker, index.scalars, ()).closed}{stride}")
        if axes == (rows,):
            tiles.append(f"{summed(speaker, index.tiles, axes).closed}.to(tl.int64){stride}")
        elif axes and (stride or len(index.tiles) != 1 or index.tiles[0].factor != 1 or len(axes) != 1):
            raise ScheduleError(f"{speaker.program.name}: rows of {tensor.name} lie in no single piece")
    (columns,) = split(node.args[tensor.rank - 1]).tiles[0].node.axes  # type: ignore[union-attr]
    there = mask(speaker, node, (rows,)).removeprefix(", mask=")
    distance = " + ".join(tiles)
    whole = f"({distance}) // {PIECE}"  # so that it is seen where pieces begin
    return Far(" + ".join(scalars), f"tl.where({there}, {whole}, -1)" if there else whole, columns)
