"""The warps that compute: the whole program over 64 rows, whose tiles of keys and values wait in shared memory.

A turn multiplies queries and keys, and the weights of the turn before with their values; the latter runs on while the
softmax of these scores is taken. The first turn finds weights and values of zero; the last weights meet their values
behind the last loop.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.backends.triton.access import summed
from sparsec.backends.triton.address import split
from sparsec.backends.triton.gluon.gather import Ask
from sparsec.backends.triton.gluon.layouts import across
from sparsec.backends.triton.gluon.products import SCORES, add, added, multiply, product
from sparsec.backends.triton.gluon.shared import AHEAD
from sparsec.backends.triton.gluon.turns import GROUP_ROWS, Roles, Turn, places, row_dim
from sparsec.backends.triton.gluon.walking import Walking
from sparsec.backends.triton.text import Text, dtype_name
from sparsec.backends.triton.uses import operands, uses
from sparsec.tile.language import Axis, LoopBody, Node, TileOp
from sparsec.tile.regions import TOP, body_of
from sparsec.tile.schedule import Schedule, ScheduleError

USED = (
    "SCORES", "SUMS", "WEIGHTS", "nothing", "turn", "slot", "later", "dot", "sums", "weights", "q_rows",
    "LOADS", "half", "before", "moved", "none", "passed", "begun", "VALUES", "row",
)  # fmt: skip
"""Variables of the printed function beside those of the program."""


class Groups(Walking):
    """Prints the function of a group of warps, number ``GROUP``.

    ``ask`` says how the groups copy rows of queries, where they do.
    """

    def __init__(self, roles: Roles, taken: list[str], ask: Ask, schedule: Schedule) -> None:
        loads, self.ask = frozenset(roles.boxes), ask
        self.peel, self.late = schedule.peel, schedule.late
        self.known: dict[int, tuple[str, str]] = {}
        self.following, self.beneath, self.there = list[str](), list[str](), list[str]()

        def reads(node: Node) -> tuple[Node, ...]:
            if node.serial in loads or node is roles.queries:
                return ()
            return (*places(node), node.args[-1]) if node.serial in roles.stored else operands(node)

        super().__init__(roles, roles.boxes | roles.stored, taken, uses(roles.program, reads=reads))
        turns = roles.turns.values()
        self.parts = {x.serial for t in turns for x in (t.scores, t.sums, t.weights, t.faded)}
        self.kept = {x.serial for t in turns for x in (t.weights.args[0], *t.faded.args[1:])}

    def body(self) -> list[str]:
        """The lines of the function."""
        made = self.roles
        self.line(f"SCORES: tl.constexpr = {product(made.keys)}")
        self.line(f"SUMS: tl.constexpr = {product(made.values)}")
        self.line("WEIGHTS: tl.constexpr = tl.DotOperandLayout(0, SUMS, 2)")
        for node in self.uses.order[TOP]:
            if node.op in (TileOp.PROGRAM_ID, TileOp.IOTA):
                self.assign(node)
        self.narrow_strides()
        self.line(f"nothing = tl.full([{GROUP_ROWS}, {made.keys.size}], 0.0, tl.float32, SCORES)")
        none = f"tl.full([{GROUP_ROWS}, {made.keys.size}], 0.0, {dtype_name(made.dtype)}, WEIGHTS)"
        if made.walk is None:
            rows = f"queries.index(GROUP).reshape([{GROUP_ROWS}, {made.dims.size}])"
            self.there = ["mbarrier.wait(queries_full, 0)", f"q_rows = {rows}"]
            self.block(f"weights = {none}", "turn = 0", *([] if made.late else self.there))
            self.there = self.there if made.late else []
        else:
            loads = [f"LOADS: tl.constexpr = {across(made.dims)}"] if made.gathered else []
            self.block(*loads, *([] if made.rings.apart else [f"none = {none}"]), "turn = 0")
        self.region(TOP)
        return self.lines

    def wants_a_line(self, node: Node) -> bool:
        """Tiles in shared memory have no line, and the products of a turn stand where the loop puts them."""
        if node in self.roles.late:
            return True
        hidden = node.serial in self.boxes or node.serial in self.parts or node is self.roles.queries
        hidden = hidden or node.serial in self.known
        return not hidden and super().wants_a_line(node)

    def is_inline(self, node: Node) -> bool:
        """What the sums wait for keeps its name until then."""
        return node.serial not in self.kept and super().is_inline(node)

    def expression(self, node: Node) -> Text:
        """A number per row that sums give moves to the layout of the scores, in which all such numbers lie."""
        made = self.roles
        if node in made.late:
            return Text(f"late_rows.index({made.late.index(node) * made.groups} + GROUP).load(SUMS)")
        text = super().expression(node)
        if node.op is TileOp.REDUCE and node.attrs[1] == made.values and made.values.size != made.keys.size:
            return Text(f"tl.convert_layout({text.text}, tl.SliceLayout(1, SCORES))")
        return text

    def layout(self, axes: tuple[Axis, ...]) -> str:
        """How the elements of a tile lie in the registers of a group."""
        made, parent = self.roles, "SUMS" if self.roles.values in axes else "SCORES"
        if any(axis not in (made.rows, made.keys, made.values) for axis in axes):
            raise ScheduleError(f"{self.program.name}: a warp group has no place for a tile over {axes}")
        return parent if len(axes) == 2 else f"tl.SliceLayout({1 if axes == (made.rows,) else 0}, {parent})"

    def at(self, node: Node, to: tuple[Axis, ...]) -> Text:
        """A node as an operand; a number per row moves to the layout of the sums where it meets them."""
        made = self.roles
        if node.axes == (made.rows,) and made.values in to and made.values.size != made.keys.size:
            return Text(f"tl.convert_layout({self.text(node).text}, tl.SliceLayout(1, SUMS))[:, None]")
        return super().at(node, to)

    def loop(self, node: Node) -> None:
        """The turns, each of which finishes the one before; behind the last loop, what the last turn left."""
        if node is self.roles.walk:
            return self.walk(node)
        body = body_of(node)
        if body.number not in self.roles.turns:
            return super().loop(node)
        turn = self.roles.turns[body.number]
        self.block(*self.there)  # behind what else is read before the first turn, so that it comes meanwhile
        self.there = []
        names = self.carry(node)
        acc, start = names[turn.position], ""
        if self.peel:
            start = self.first(turn, names)
        if self.beneath:
            start = self.second(turn, names, start)
        index = self.named[body.index.serial] = self.names.fresh("i")
        whole = self.whole(turn, names)
        self.line(f"for {index} in range({self.bounds(node, start)}):")
        self.depth += 1
        self.block(*whole)
        self.depth -= 1
        self.leave(node, names)
        if turn is self.roles.last:
            alone, rings = self.roles.walk is None, self.roles.rings
            slot, freed = ["slot = turn % STAGES"] * alone, rings.summed(self.before) if alone or rings.apart else []
            self.block(*slot, add(acc, self.before), *self.following, *added(acc), *freed)

    def whole(self, turn: Turn, names: list[str], beneath: Sequence[str] = ()) -> list[str]:
        """A turn that has weights before it, with lines beneath its products."""
        acc, rings = names[turn.position], self.roles.rings
        before, after = self.rest(turn, body_of(turn.loop), names)
        asked = [*multiply(), add(acc, self.before), *before, *beneath, SCORES, *rings.scored]
        return [*asked, *after, *rings.wait, *added(acc), *rings.summed(self.before), *self.weigh(turn, acc)]

    def first(self, turn: Turn, names: list[str]) -> str:
        """The first turn, which has no weights before it; where the others start."""
        body, (lo, hi), outside = body_of(turn.loop), turn.loop.args[:2], dict(self.named)
        index = self.named[body.index.serial] = self.names.fresh("first")
        begin = self.bound(lo)
        before, after = self.rest(turn, body, names)
        if not turn.certain:
            self.line(f"if {begin} < {self.bound(hi)}:")
            self.depth += 1
        rings, scores = self.roles.rings, [SCORES.replace("(1", "(0"), *self.roles.rings.scored]
        self.block(f"{index} = {begin}", *multiply(), *before, *scores, *after, *rings.wait)
        self.block(*([] if rings.apart else rings.summed("")), *self.weigh(turn, names[turn.position]))
        self.depth -= turn.certain == 0
        if self.roles.ahead:  # the rows of the tile before have left meanwhile
            self.block("tma.store_wait(0)", f"mbarrier.arrive(queries_free.index((passed + 1) % {AHEAD}), count=1)")
        self.named = outside
        return f"{begin} + {body.step}"

    def second(self, turn: Turn, names: list[str], start: str) -> str:
        """The second turn, beneath whose products rows of the next tile are asked for; where the others start.

        Triton moves copies beneath the only product of the first turn to before it.
        """
        body, outside = body_of(turn.loop), dict(self.named)
        index = self.named[body.index.serial] = self.names.fresh("second")
        self.block(f"{index} = {start}", *self.whole(turn, names, self.beneath))
        self.named = outside
        return f"{start} + {body.step}"

    def assign(self, node: Node) -> None:
        """``name = expression``; rows that come late are waited for by the first that needs them."""
        late, walks = self.roles.late, self.roles.ahead
        if late and node is late[0]:
            self.line(f"mbarrier.wait(late_full, {'passed & 1' if walks else 0})")
        super().assign(node)
        if late and node is late[-1] and walks:
            self.line("mbarrier.arrive(late_free, count=1)")

    def store(self, node: Node) -> None:
        """Rows of the output leave through the shared memory where the queries were: as a box, or in whole pieces."""
        if self.scattered(node):
            return self.scatter(node)
        if node.serial not in self.roles.stored:
            return super().store(node)
        box = self.boxes[node.serial]
        starts = [self.start(node, dim) for dim in box.dims]
        rounded, rows = self.text(node.args[-1]).text, "q_rows" if self.roles.ahead else "queries.index(GROUP)"
        wait = [] if self.roles.ahead else ["tma.store_wait(0)"]  # a walk waits in its next tile
        self.block(
            f"q_rows.store({rounded})",
            "hopper.fence_async_shared()",
            f"put({box.name}, [{', '.join(starts)}], {rows}.reshape({list(box.block)}))",
            *wait,
        )
        return None

    def start(self, node: Node, dim: int) -> str:
        """Where a group's box begins in one dimension."""
        scalars = split(node.args[dim]).scalars
        text = summed(self, scalars, ()).text if scalars else "0"
        return f"{text} + GROUP * {GROUP_ROWS}" if dim == row_dim(node, self.roles.rows) else text

    def rest(self, turn: Turn, body: LoopBody, names: list[str]) -> tuple[list[str], list[str]]:
        """A turn without its products: what need not wait for the scores, and what follows from them."""
        self.named[turn.scores.serial] = "dot"
        waiting = {turn.scores.serial}
        for node in self.uses.order[body.number]:
            if any(a.serial in waiting for a in node.args):
                waiting.add(node.serial)
        masks = [n for n in self.uses.order[body.number] if n.op is TileOp.MASK_IF]
        self.guarded = {n.serial: self.only_for(n) for n in masks}
        hidden = {n.serial for nodes in self.guarded.values() for n in nodes}
        nodes = [n for n in self.uses.order[body.number] if self.wants_a_line(n) and n.serial not in hidden]
        above, depth, self.depth = self.lines, self.depth, 0
        before = self.assigned([n for n in nodes if n.serial not in waiting])
        after = self.assigned([n for n in nodes if n.serial in waiting])
        carried = [k for k in range(len(names)) if k != turn.position]
        self.next_state(0, [names[k] for k in carried], [self.text(body.yields[k]).text for k in carried])
        self.lines, self.depth = above, depth
        return before, after

    def assigned(self, nodes: list[Node]) -> list[str]:
        """The lines of some nodes, as a list of their own that further lines go to."""
        self.lines = []
        for node in nodes:
            if node.op is TileOp.MASK_IF:
                self.mask(node)
            else:
                self.assign(node)
        return self.lines

    def only_for(self, mask_if: Node) -> list[Node]:
        """The values of a mask's region that nothing but this mask needs."""
        condition, mask, x, _ = mask_if.args
        found: dict[int, Node] = {}
        for node in reversed(self.uses.order[self.uses.regions.home[mask_if.serial]]):
            readers = self.uses.readers.get(node.serial, [])
            own = node is mask and node not in (condition, x)
            if readers and all(r.serial in found or (r is mask_if and own) for r in readers):
                found[node.serial] = node
        return [node for node in reversed(found.values()) if self.wants_a_line(node)]

    def mask(self, node: Node) -> None:
        """A mask under a branch of its own, with all that is computed for it: most tiles need none."""
        condition, mask, x, other = node.args
        name = self.named[node.serial] = self.names.fresh("seen")
        self.block(f"{name} = {self.text(x).text}", f"if {self.text(condition).text}:")
        self.depth += 1
        for inner in self.guarded[node.serial]:
            self.assign(inner)
        self.line(f"{name} = tl.where({self.at(mask, node.axes).text}, {name}, {self.text(other).text})")
        self.depth -= 1

    def weigh(self, turn: Turn, acc: str) -> list[str]:
        """The end of a turn: weights as an operand, and sums of before faded."""
        return [
            f"weights = tl.convert_layout({self.expression(turn.weights).text}, WEIGHTS)",
            *([f"{acc} = {self.expression(turn.faded).text}"] if turn.faded.args else []),
            "turn += 1",
            *(["before = later"] if self.roles.walk is not None else []),
        ]
