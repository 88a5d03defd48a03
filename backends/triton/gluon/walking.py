"""Groups that walk from one tile of queries to the next: where its rows are, and when the next ones may come."""

from __future__ import annotations

from sparsec.backends.triton.access import address, mask
from sparsec.backends.triton.gluon.layouts import Laid
from sparsec.backends.triton.gluon.shared import AHEAD
from sparsec.backends.triton.text import dtype_name
from sparsec.tile.language import Node, access_of
from sparsec.tile.regions import body_of


class Walking(Laid):
    """What of a group's function is about walks.

    Attributes:
        gather: the arguments of the function that copies rows of queries, where the groups do.
        late: whether they ask for their next rows beneath a tile's last product.
        following: the lines that do so then.
        there: lines that stand before a tile's first turn, behind what else is read before it.
        away: whether rows that are written have the layout of whole pieces.
    """

    gather: list[str]
    late: bool
    following: list[str]
    there: list[str]
    away: bool

    def walk(self, node: Node) -> None:
        """One tile of queries after the other; the rows of the next one are on their way while one is read."""
        if self.roles.ahead:
            return self.walk_boxes(node)
        body, (lo, hi) = body_of(node), node.args[:2]
        first, end, index = self.bound(lo), self.bound(hi), self.names.fresh("i")
        self.named[body.index.serial] = index
        begin, rest = f"{self.program.name}_queries(GROUP, ", ", ".join(self.gather)
        self.line(f"if {first} < {end}:")
        self.line(f"    {begin}{first}, queries.index(GROUP), {rest})")
        self.line("half = 0")
        self.line(f"for {index} in range({first}, {end}, {body.step}):")
        self.depth += 1
        other = f"queries.index((1 - half) * {self.roles.groups} + GROUP)"
        further = f"{begin}tl.minimum({index} + {body.step}, {end} - 1), {other}, {rest})"
        self.following = [further] if self.late else []
        self.block(
            "async_copy.wait_group(0)",
            "hopper.fence_async_shared()",
            f"q_rows = queries.index(half * {self.roles.groups} + GROUP)",
            *([] if self.late else [further]),
            "weights = none",
            "before = STAGES",
        )
        self.region(body.number)
        self.line("half = 1 - half")
        self.depth -= 1

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
        self.block("weights = none", "before = STAGES")
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
        self.away = True
        self.line(f"tl.store({address(self, node, value.axes)}, moved{mask(self, node, value.axes)})")
        self.away = False
