"""What every warp that loads for others prints: boxes to shared memory, and the numbers that say where they begin."""

from __future__ import annotations

from sparsec.backends.triton.access import summed
from sparsec.backends.triton.address import split
from sparsec.backends.triton.gluon.sums import Sums
from sparsec.backends.triton.gluon.turns import Roles, row_dim
from sparsec.backends.triton.printer import Printer
from sparsec.backends.triton.uses import Uses
from sparsec.tile.language import Node, TileOp
from sparsec.tile.schedule import ScheduleError


class Loads(Printer):
    """A printer of a loading warp's function."""

    roles: Roles | Sums

    def __init__(self, roles: Roles | Sums, taken: list[str], seen: Uses) -> None:
        self.roles = roles
        super().__init__(roles.program, roles.boxes, seen=seen)
        self.names.taken.update(taken)
        if any(node.op in (TileOp.CARRY, TileOp.RESULT) for node in self.nodes):
            raise ScheduleError(f"{self.program.name}: the place of a tile depends on what a loop carries")

    def is_alone(self, node: Node) -> bool:
        """Whether a node that is no loop has a line, being neither a box nor what groups store."""
        return node.serial not in self.boxes and node.op is not TileOp.STORE and self.wants_a_line(node)

    def bytes_of(self, node: Node) -> int:
        """The size of a box of two-byte numbers."""
        size = 2
        for extent in self.boxes[node.serial].block:
            size *= extent
        return size

    def fetch(self, node: Node, barrier: str, slot: str, further: int = 0) -> str:
        """A box to shared memory; ``further`` moves it along its rows."""
        box = self.boxes[node.serial]
        along = row_dim(node, self.roles.rows) if further else -1
        starts = [self.start(node.args[dim], further if dim == along else 0) for dim in box.dims]
        return f"fetch({box.name}, [{', '.join(starts)}], {barrier}, {slot}.reshape({list(box.block)}))"

    def start(self, index: Node, further: int) -> str:
        """Where a box begins in one dimension."""
        scalars = split(index).scalars
        text = summed(self, scalars, ()).text if scalars else "0"
        return f"{text} + {further}" if further else text
