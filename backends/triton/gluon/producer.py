"""The warp that loads: the program's loops once more, with nothing in them but what their boxes' places need."""

from __future__ import annotations

from sparsec.backends.triton.gluon.loads import Loads
from sparsec.backends.triton.gluon.shared import AHEAD
from sparsec.backends.triton.gluon.turns import GROUP_ROWS, Roles, places
from sparsec.backends.triton.uses import operands, uses
from sparsec.tile.language import Node, TileOp
from sparsec.tile.regions import TOP, body_of


class Producer(Loads):
    """Prints the loading warp's function."""

    roles: Roles

    def __init__(self, roles: Roles, taken: list[str]) -> None:
        loads = frozenset(roles.boxes)

        def reads(node: Node) -> tuple[Node, ...]:
            if node is roles.walk:
                rows = (roles.queries, *roles.late) if roles.ahead else ()
                return (*node.args[:2], *rows, *(turn.loop for turn in roles.turns.values()))
            if node.op is TileOp.LOOP:
                turn = roles.turns[body_of(node).number]
                return (*node.args[:2], turn.keys, turn.values)
            if node.op is TileOp.STORE:
                return (roles.queries, *roles.late, *(turn.loop for turn in roles.turns.values()))
            return places(node) if node.serial in loads else operands(node)

        super().__init__(roles, taken, uses(roles.program, reads=reads))

    def body(self) -> list[str]:
        """The lines of the function."""
        for node in self.uses.order[TOP]:
            if node.op is TileOp.PROGRAM_ID:
                self.assign(node)
        self.line("turn = 0")
        self.region(TOP)
        if self.roles.late and self.roles.walk is None:
            self.fetch_late("turn == 0")
        return self.lines

    def region(self, number: int) -> None:
        """The printed nodes of a region; a load through a box goes to shared memory."""
        nodes = self.uses.order.get(number, ())
        if number == self.roles.base and self.roles.late:  # whose places are known before the first turn
            nodes = tuple(sorted(nodes, key=lambda node: node.op is TileOp.LOOP))
        for node in nodes:
            if node is self.roles.queries:
                self.fetch_queries(node)
            elif node.op is TileOp.LOOP:
                self.loop(node)
            elif self.is_alone(node):
                self.assign(node)

    def loop(self, node: Node) -> None:
        """A tile of keys and one of values a turn; zeros were the first values, so those of a turn come a slot later.

        Where both are freed together, keys wait for no slot of their own: the values loaded before them waited until
        values were used up at the end of a turn, the turn whose keys these replace.
        """
        body = body_of(node)
        if node is self.roles.walk:
            return self.walk(node)
        turn = self.roles.turns[body.number]
        index = self.named[body.index.serial] = self.names.fresh("i")
        self.line(f"for {index} in range({self.bounds(node)}):")
        self.depth += 1
        self.region(body.number)
        if self.roles.rings.apart:
            for load, ring, slots in ((turn.keys, "keys", "STAGES"), (turn.values, "values", "VALUES")):
                self.line(f"slot = turn % {slots}")
                self.line(f"mbarrier.wait({ring}_free.index(slot), (turn // {slots} + 1) & 1)")
                self.fetched(load, ring, "slot")
        else:
            self.fetched(turn.keys, "keys", "turn % STAGES")
            self.line("slot = (turn + 1) % STAGES")
            self.line("mbarrier.wait(free.index(slot), ((turn + 1) // STAGES + 1) & 1)")
            self.fetched(turn.values, "values", "slot")
        self.line("turn += 1")
        if self.roles.late and self.roles.ahead:
            self.line("begun += 1")
            self.fetch_late("begun == STAGES - 1")
        elif self.roles.late:
            self.fetch_late("turn == 1")
        self.depth -= 1

    def walk(self, node: Node) -> None:
        """The tiles of queries, whose keys and values follow one another in the same rings."""
        body = body_of(node)
        index = self.named[body.index.serial] = self.names.fresh("i")
        if self.roles.ahead:
            self.line("passed = 0")
        self.line(f"for {index} in range({self.bound(node.args[0])}, {self.bound(node.args[1])}, {body.step}):")
        self.depth += 1
        if self.roles.late:
            self.line("begun = 0")
        self.region(body.number)
        if self.roles.late:
            self.fetch_late("begun < STAGES - 1")
        if self.roles.ahead:
            self.line("passed += 1")
        self.depth -= 1

    def fetched(self, load: Node, ring: str, slot: str) -> None:
        """A box that goes to a slot of a ring."""
        self.line(f"mbarrier.expect({ring}_full.index({slot}), {self.bytes_of(load)})")
        self.line(self.fetch(load, f"{ring}_full.index({slot})", f"{ring}_ring.index({slot})"))

    def fetch_queries(self, node: Node) -> None:
        """The rows of every group; of a walk's next tile but one as soon as nobody reads those of this."""
        made, full, first = self.roles, "queries_full", ""
        if made.ahead:
            full, first = f"queries_full.index(passed % {AHEAD})", f"passed % {AHEAD} * {made.groups} + "
            self.line(f"mbarrier.wait(queries_free.index(passed % {AHEAD}), ((passed + 1) // {AHEAD} + 1) & 1)")
        self.line(f"mbarrier.expect({full}, {self.bytes_of(node) * made.groups})")
        for group in range(made.groups):
            self.line(self.fetch(node, full, f"queries.index({first}{group})", GROUP_ROWS * group))

    def fetch_late(self, condition: str) -> None:
        """The rows that are met after the turns: behind the boxes of the first turn, or alone where there is none.

        Those of a walk wait for the tile before, so they come behind as many boxes as fit in the rings by then.
        """
        made = self.roles
        self.line(f"if {condition}:")
        self.depth += 1
        if made.ahead:
            self.line("mbarrier.wait(late_free, (passed + 1) & 1)")
        self.line(f"mbarrier.expect(late_full, {sum(map(self.bytes_of, made.late)) * made.groups})")
        for number, node in enumerate(made.late):
            for group in range(made.groups):
                slot = f"late_rows.index({number * made.groups + group})"
                self.line(self.fetch(node, "late_full", slot, GROUP_ROWS * group))
        self.depth -= 1
