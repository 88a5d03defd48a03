"""The functions by which a group finds out whose rows are next, and copies them to shared memory from anywhere."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.backends.triton.gluon.far import far
from sparsec.backends.triton.gluon.layouts import Laid, across
from sparsec.backends.triton.gluon.turns import GROUP_WARPS, Roles
from sparsec.backends.triton.uses import operands, uses
from sparsec.tile.language import Axis, Node, TileOp
from sparsec.tile.regions import TOP, body_of
from sparsec.tile.schedule import ScheduleError

USED = ("LOADS", "ROWS", "row", "target", "number")
"""Variables of the printed functions beside those of the program."""


@dataclass(frozen=True, slots=True)
class Ask:
    """How a group asks for rows.

    Attributes:
        names: what says whose rows they are, where it is loaded long before they are copied; else nothing.
        known: the arguments of the function that loads it.
        copied: those of the function that copies rows.
    """

    names: list[str]
    known: list[str]
    copied: list[str]


class Gather(Laid):
    """Prints what the queries of tile ``number`` of a walk need, and nothing else of it; ``given`` loads are named."""

    roles: Roles

    def __init__(self, roles: Roles, taken: list[str], given: tuple[Node, ...] = ()) -> None:
        self.given = given

        def reads(node: Node) -> tuple[Node, ...]:
            if node in given:
                return ()
            return (roles.queries,) if node is roles.walk else operands(node)

        super().__init__(roles, {}, [*taken, *USED], uses(roles.program, reads=reads))
        self.named.update({load.serial: f"who_{k}" for k, load in enumerate(given)})

    def body(self) -> list[str]:
        """The lines of the function."""
        self.begin()
        for node in self.wanted_nodes():
            if node is self.roles.queries:
                self.copy(node)
            elif node.op is not TileOp.LOOP and node not in self.given and self.wants_a_line(node):
                self.assign(node)
        return self.lines

    def begin(self) -> None:
        """What stands first in a function."""
        assert self.roles.walk is not None
        self.line(f"LOADS: tl.constexpr = {across(self.roles.dims)}")
        self.line(f"ROWS: tl.constexpr = tl.BlockedLayout([1], [32], [{GROUP_WARPS}], [0])")
        self.named[body_of(self.roles.walk).index.serial] = "number"
        for node in self.uses.order[TOP]:
            if node.op in (TileOp.PROGRAM_ID, TileOp.IOTA):
                self.assign(node)
        self.narrow_strides()

    def wanted_nodes(self) -> tuple[Node, ...]:
        """The nodes that are printed."""
        return (*self.uses.order[TOP], *self.uses.order.get(self.roles.base, ()))

    def copy(self, node: Node) -> None:
        """The copies, which whoever asked for them waits for."""
        self.block(*far(self, node, self.roles.rows).lines("copy(target, "))
        self.line("async_copy.commit_group()")

    def layout(self, axes: tuple[Axis, ...]) -> str:
        """A row's numbers are a thread's, and its parts those of threads that move them in one piece."""
        if axes not in ((self.roles.rows,), (self.roles.dims,)):
            raise ScheduleError(f"{self.program.name}: whose rows are read depends on a tile over {axes}")
        return "ROWS" if axes == (self.roles.rows,) else "tl.SliceLayout(0, LOADS)"


class Who(Gather):
    """Prints what has to be loaded to know whose rows a tile's are. ``loads`` are empty where one needs another."""

    def __init__(self, roles: Roles, taken: list[str]) -> None:
        every = Gather(roles, taken)
        base = every.uses.order.get(roles.base, ())
        self.loads = tuple(n for n in base if n.op is TileOp.LOAD and n is not roles.queries)
        if any(_above(n) & set(self.loads) for n in self.loads):
            self.loads = ()

        def reads(node: Node) -> tuple[Node, ...]:
            return self.loads if node is roles.walk else operands(node)

        super().__init__(roles, taken)
        self.uses = uses(roles.program, reads=reads)

    @property
    def returned(self) -> list[str]:
        """Names of what the function returns."""
        return [f"who_{k}" for k in range(len(self.loads))]

    def body(self) -> list[str]:
        """The lines of the function."""
        self.begin()
        for node in self.wanted_nodes():
            if node.op is not TileOp.LOOP and (node in self.loads or self.wants_a_line(node)):
                self.assign(node)
        self.line(f"return {', '.join(self.named[load.serial] for load in self.loads)}")
        return self.lines


def _above(node: Node) -> set[Node]:
    """All that a node is computed from."""
    found, stack = set[Node](), list(operands(node))
    while stack:
        if (next_ := stack.pop()) not in found:
            found.add(next_)
            stack += operands(next_)
    return found
