"""Groups that walk from one tile of queries to the next: where its rows are, and when the next ones may come."""

from __future__ import annotations

from sparsec.backends.triton.gluon.far import far
from sparsec.backends.triton.gluon.gather import Ask
from sparsec.backends.triton.gluon.layouts import Laid
from sparsec.backends.triton.gluon.shared import AHEAD
from sparsec.backends.triton.gluon.turns import Roles
from sparsec.backends.triton.text import dtype_name
from sparsec.backends.triton.uses import operands
from sparsec.tile.language import LoopBody, Node, TileOp, access_of
from sparsec.tile.regions import body_of

_AT_HAND = (TileOp.CONST, TileOp.PARAM, TileOp.PROGRAM_ID, TileOp.INDEX)


class Walking(Laid):
    """What of a group's function is about walks.

    Attributes:
        ask: how groups ask for rows of queries, where they copy them.
        late: whether they ask for their next rows beneath a product, not before a tile's first.
        known: what the numbers of a tile are called that are loaded while the tile before is read.
        following: the lines that do so beneath the last one.
        beneath: the lines that do so in the second turn, where what says whose rows are next is loaded by then.
        there: lines that stand before a tile's first turn, behind what else is read before it.
    """

    roles: Roles

    ask: Ask
    late: bool
    known: dict[int, tuple[str, str]]
    following: list[str]
    beneath: list[str]
    there: list[str]

    def walk(self, node: Node) -> None:
        """One tile of queries after the other; the rows of the next one are on their way while one is read."""
        if self.roles.ahead:
            return self.walk_boxes(node)
        body, (lo, hi) = body_of(node), node.args[:2]
        first, end, index = self.bound(lo), self.bound(hi), self.names.fresh("i")
        self.named[body.index.serial] = index
        other = f"queries.index((1 - half) * {self.roles.groups} + GROUP)"
        further = f"tl.minimum({index} + {body.step}, {end} - 1)"
        self.block(f"if {first} < {end}:", *(f"    {line}" for line in self.copied(first, "queries.index(GROUP)")))
        self.line("half = 0")
        asked = self.copied(further, other)
        whose, asked = asked[:-1], asked[-1:]
        later = self.carried(body, further) if whose else []
        self.beneath = [*asked, *(f"{after} = {text}" for _, after, text in later)] if whose else []
        self.following = asked if self.late and not whose else []
        now = self.carried(body, f"tl.maximum(tl.minimum({first}, {end} - 1), 0)") if whose else []
        self.block(*(f"{name} = {text}" for name, _, text in now))
        self.named[body.index.serial] = index
        self.line(f"for {index} in range({first}, {end}, {body.step}):")
        self.depth += 1
        self.block(
            "async_copy.wait_group(0)",
            "hopper.fence_async_shared()",
            f"q_rows = queries.index(half * {self.roles.groups} + GROUP)",
            *(whose if self.late else asked),
            *([] if self.roles.rings.apart else ["weights = none", "before = STAGES"]),
        )
        self.region(body.number)
        self.block("half = 1 - half", *(f"{name} = {after}" for name, after, _ in later))
        self.depth -= 1

    def carried(self, body: LoopBody, number: str) -> list[tuple[str, str, str]]:
        """Numbers of a tile that are loaded while the tile before is read, so that what they lead to can be loaded at
        once: what each is called, what it is called while the tile before is read, and how tile ``number``'s is found.
        """
        found = []
        for node in self.uses.order[body.number]:
            if node.op is TileOp.LOAD and not node.axes and all(a.op in _AT_HAND for a in operands(node)):
                if node.serial not in self.known:
                    name = self.named[node.serial] = self.names.fresh(self.wanted(node))
                    self.known[node.serial] = name, self.names.fresh(name)
                self.named[body.index.serial] = number
                found.append((*self.known[node.serial], self.expression(node).text))
        return found

    def copied(self, number: str, target: str) -> list[str]:
        """The lines that have a tile's rows copied."""
        names, name = self.ask.names, self.program.name
        whose = [f"{', '.join(names)} = {name}_who(GROUP, {', '.join([number, *self.ask.known])})"] if names else []
        return [*whose, f"{name}_queries(GROUP, {', '.join([*(names or [number]), target, *self.ask.copied])})"]

    def walk_boxes(self, node: Node) -> None:
        """As ``walk``, where the loading warp brings the rows: behind a tile's first products a group
        says that it is done with those of the tile before."""
        body, (lo, hi) = body_of(node), node.args[:2]
        index = self.named[body.index.serial] = self.names.fresh("i")
        self.line("passed = 0")
        self.line(f"for {index} in range({self.bound(lo)}, {self.bound(hi)}, {body.step}):")
        self.depth += 1
        wait = f"mbarrier.wait(queries_full.index(passed % {AHEAD}), (passed // {AHEAD}) & 1)"
        self.there = [wait, f"q_rows = queries.index(passed % {AHEAD} * {self.roles.groups} + GROUP)"]
        self.block(*([] if self.roles.rings.apart else ["weights = none", "before = STAGES"]))
        self.region(body.number)
        self.line("passed += 1")
        self.depth -= 1
        self.line("tma.store_wait(0)")

    @property
    def before(self) -> str:
        """The slot of the values of the turn before; a walk's first turn finds zeros."""
        return "slot" if self.roles.walk is None else "before"

    def scattered(self, node: Node) -> bool:
        """Whether a group's rows go to places of their own, and fit where its queries were."""
        made, value = self.roles, node.args[-1]
        alike = value.dtype in ("float16", "bfloat16") and made.values.size == made.dims.size
        return made.gathered and alike and value.axes == (made.rows, made.values) and not access_of(node).atomic

    def scatter(self, node: Node) -> None:
        """The threads hand rows on, so that each writes vectors."""
        value, kept = node.args[-1], dtype_name(self.roles.dtype)
        other = value.dtype != self.roles.dtype
        text, moved = self.text(value).text, "q_rows.load(LOADS)"
        self.line(f"q_rows.store({f'tl.cast({text}, {kept}, bitcast=True)' if other else text})")
        self.line(f"moved = {f'tl.cast({moved}, {dtype_name(value.dtype)}, bitcast=True)' if other else moved}")
        self.block(*far(self, node, self.roles.rows).lines("tl.store(", ", moved"))
