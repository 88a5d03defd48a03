"""Expressions of one group's rows: as Triton says them, with layouts where it has none."""

from __future__ import annotations

from sparsec.backends.triton.descriptors import Descriptor
from sparsec.backends.triton.gluon.sums import Sums
from sparsec.backends.triton.gluon.turns import GROUP_ROWS, GROUP_WARPS, Roles
from sparsec.backends.triton.printer import Printer
from sparsec.backends.triton.text import Text
from sparsec.backends.triton.uses import Uses
from sparsec.tile.language import Axis, Node, TileOp

PIECE = 8
"""Numbers of two bytes that a thread moves at a time."""


def across(columns: Axis) -> str:
    """The layout in which a group's threads move whole rows."""
    lanes = columns.size // PIECE
    return f"tl.BlockedLayout([1, {PIECE}], [{32 // lanes}, {lanes}], [{GROUP_WARPS}, 1], [1, 0])"


class Laid(Printer):
    """A printer of tiles that lie in the registers of a group, number ``GROUP``."""

    roles: Roles | Sums

    def __init__(self, roles: Roles | Sums, boxes: dict[int, Descriptor], taken: list[str], seen: Uses) -> None:
        self.roles = roles
        super().__init__(roles.program, boxes, seen=seen)
        self.names.taken.update(taken)

    def block(self, *lines: str) -> None:
        """Lines at the current depth."""
        for line in lines:
            self.line(line)

    def layout(self, axes: tuple[Axis, ...]) -> str:
        """How the elements of a tile lie in the registers of a group."""
        raise NotImplementedError

    def size(self, axis: Axis) -> int:
        """How much of an axis a group has."""
        return GROUP_ROWS if axis == self.roles.rows else axis.size

    def expression(self, node: Node) -> Text:
        """As Triton says it, with layouts where it has none."""
        if node.op is TileOp.IOTA:
            (axis,) = node.axes
            text = f"tl.arange(0, {self.size(axis)}, {self.layout(node.axes)})"
            return Text(f"{text} + GROUP * {GROUP_ROWS}", True) if axis == self.roles.rows else Text(text)
        made = super().expression(node)
        if node.op is TileOp.FULL:
            shape = ", ".join(str(self.size(axis)) for axis in node.axes)
            value = made.text.split("], ", 1)[1][:-1]
            return Text(f"tl.full([{shape}], {value}, {self.layout(node.axes)})")
        return Text(made.text.replace("tl.PropagateNan", "core.PropagateNan"), made.infix, made.product)
