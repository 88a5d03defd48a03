"""The function by which a group copies its rows of queries, from wherever they are, to shared memory."""

from __future__ import annotations

from sparsec.backends.triton.access import address, mask
from sparsec.backends.triton.gluon.layouts import Laid, across
from sparsec.backends.triton.gluon.turns import Roles
from sparsec.backends.triton.uses import operands, uses
from sparsec.tile.language import Axis, Node, TileOp
from sparsec.tile.regions import TOP, body_of
from sparsec.tile.schedule import ScheduleError

USED = ("LOADS", "target", "number")
"""Variables of the printed function beside those of the program."""


class Gather(Laid):
    """Prints what the queries of tile ``number`` of a walk need, and nothing else of it."""

    def __init__(self, roles: Roles, taken: list[str]) -> None:
        def reads(node: Node) -> tuple[Node, ...]:
            return (roles.queries,) if node is roles.walk else operands(node)

        super().__init__(roles, {}, [*taken, *USED], uses(roles.program, reads=reads))

    def body(self) -> list[str]:
        """The lines of the function."""
        assert self.roles.walk is not None
        self.line(f"LOADS: tl.constexpr = {across(self.roles.dims)}")
        self.named[body_of(self.roles.walk).index.serial] = "number"
        for node in self.uses.order[TOP]:
            if node.op in (TileOp.PROGRAM_ID, TileOp.IOTA):
                self.assign(node)
        self.narrow_strides()
        for node in (*self.uses.order[TOP], *self.uses.order.get(self.roles.base, ())):
            if node is self.roles.queries:
                self.copy(node)
            elif node.op is not TileOp.LOOP and self.wants_a_line(node):
                self.assign(node)
        return self.lines

    def copy(self, node: Node) -> None:
        """The copies, which whoever asked for them waits for."""
        self.line(f"copy(target, {address(self, node, node.axes)}{mask(self, node, node.axes)})")
        self.line("async_copy.commit_group()")

    def layout(self, axes: tuple[Axis, ...]) -> str:
        """A thread has parts of rows that it moves in one piece."""
        made = self.roles
        if any(axis not in (made.rows, made.dims) for axis in axes):
            raise ScheduleError(f"{self.program.name}: whose rows are read depends on a tile over {axes}")
        return "LOADS" if len(axes) == 2 else f"tl.SliceLayout({1 if axes == (made.rows,) else 0}, LOADS)"
