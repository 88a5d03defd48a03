"""The roles of a program of gradients: groups that add to sums of their rows, and the warp that loads for them.

All products of a turn stand in their plain order: each is asked for as soon as its operands are there, and waited for
where somebody reads it, the sums at the end of their turn. Measured on an H100, sums a turn late gain nothing.
"""

from __future__ import annotations

from sparsec.backends.triton.gluon.layouts import Laid
from sparsec.backends.triton.gluon.loads import Loads
from sparsec.backends.triton.gluon.products import product
from sparsec.backends.triton.gluon.sums import Sums
from sparsec.backends.triton.gluon.turns import GROUP_ROWS, places
from sparsec.backends.triton.text import Text
from sparsec.backends.triton.uses import operands, uses
from sparsec.tile.language import Axis, LoopBody, Node, TileOp
from sparsec.tile.regions import TOP, body_of, regions
from sparsec.tile.schedule import ScheduleError

SHARED = ("held", "ring", "numbers", "held_full", "full", "free")
"""Tiles and barriers."""

USED = (*SHARED, "SCORES", "SUMS", "WEIGHTS", "LANES", "nothing", "turn", "slot", "GROUP", "STAGES")
"""These, and variables of the printed functions beside those of the program."""


class SumGroups(Laid):
    """Prints the function of a group of warps, number ``GROUP``."""

    roles: Sums

    def __init__(self, roles: Sums, taken: list[str]) -> None:
        loads = frozenset(roles.boxes) | {n.serial for found in roles.numbers.values() for n in found}
        self.numbers: tuple[Node, ...] = ()

        def reads(node: Node) -> tuple[Node, ...]:
            return () if node.serial in loads else operands(node)

        super().__init__(roles, roles.boxes, taken, uses(roles.program, reads=reads))
        self.under_way: list[Node] = []

    def body(self) -> list[str]:
        """The lines of the function."""
        made = self.roles
        self.line(f"SCORES: tl.constexpr = {product(made.columns)}")
        self.line(f"SUMS: tl.constexpr = {product(made.dims)}")
        self.line("WEIGHTS: tl.constexpr = tl.DotOperandLayout(0, SUMS, 2)")
        for node in self.uses.order[TOP]:
            if node.op in (TileOp.PROGRAM_ID, TileOp.IOTA):
                self.assign(node)
        self.narrow_strides()
        self.line(f"nothing = tl.full([{GROUP_ROWS}, {made.columns.size}], 0.0, tl.float32, SCORES)")
        self.block("turn = 0", "mbarrier.wait(held_full, 0)")
        self.region(TOP)
        return self.lines

    def expression(self, node: Node) -> Text:
        """A kept tile that something beside a product reads comes from shared memory."""
        made = self.roles
        if node in made.held:
            return Text(f"{self.held(node)}.load(SUMS)")
        if node in self.numbers:
            place = f"slot * {len(self.numbers)} + {self.numbers.index(node)}"
            return Text(f"numbers.index({place}).load(tl.SliceLayout(0, SCORES))")
        text = super().expression(node)
        if node.op is TileOp.REDUCE and node.axes == (made.rows,) and made.columns not in node.args[0].axes:
            return Text(f"tl.convert_layout({text.text}, tl.SliceLayout(1, SCORES))")
        return text

    def layout(self, axes: tuple[Axis, ...]) -> str:
        """How the elements of a tile lie in the registers of a group."""
        made = self.roles
        parent = "SCORES" if all(a in (made.rows, made.columns) for a in axes) else "SUMS"
        if any(a not in (made.rows, made.columns) and a.size != made.dims.size for a in axes):
            raise ScheduleError(f"{self.program.name}: a warp group has no place for a tile over {axes}")
        return parent if len(axes) == 2 else f"tl.SliceLayout({1 if axes == (made.rows,) else 0}, {parent})"

    def at(self, node: Node, to: tuple[Axis, ...]) -> Text:
        """A node as an operand; a number per row moves to the layout of the sums where it meets them."""
        made = self.roles
        if node.axes == (made.rows,) and len(to) == 2 and made.columns not in to:
            return Text(f"tl.convert_layout({self.text(node).text}, tl.SliceLayout(1, SUMS))[:, None]")
        return super().at(node, to)

    def wants_a_line(self, node: Node) -> bool:
        """Tiles in shared memory have no line, and products stand where the loop puts them."""
        return node.serial not in self.boxes and node.op is not TileOp.DOT and super().wants_a_line(node)

    def loop(self, node: Node) -> None:
        """The turns: what needs no product, the first products, and what follows from each."""
        body, names = body_of(node), self.carry(node)
        index = self.named[body.index.serial] = self.names.fresh("i")
        self.line(f"for {index} in range({self.bounds(node)}):")
        self.depth += 1
        self.turn(body, names)
        self.depth -= 1
        self.leave(node, names)

    def turn(self, body: LoopBody, names: list[str]) -> None:
        """One turn."""
        needs = dict[int, set[int]]()
        order, self.numbers = self.uses.order[body.number], self.roles.numbers[body.number]
        for node in order:
            own = {node.serial} if node.op is TileOp.DOT or node in self.numbers else set[int]()
            needs[node.serial] = own.union(*(needs.get(a.serial, set()) for a in operands(node)))
        for node in (n for n in order if not needs[n.serial] and self.wants_a_line(n)):
            self.assign(node)
        self.block("slot = turn % STAGES", "mbarrier.wait(full.index(slot), (turn // STAGES) & 1)")
        loads = self.roles.loops[body.number]
        for dot in (n for n in order if n.op is TileOp.DOT and len(n.args) == 2):
            self.ask(dot, self.held(dot.args[0]), "nothing, use_acc=False", loads)
        weights = list[str]()
        for dot in (n for n in order if n.op is TileOp.DOT and len(n.args) == 3):
            self.bring(dot, needs)
            self.await_products(needs[dot.serial] - {dot.serial})
            weights.append(self.names.fresh("weights"))
            self.line(f"{weights[-1]} = tl.convert_layout({self.text(dot.args[0]).text}, WEIGHTS)")
            self.ask(dot, weights[-1], self.text(dot.args[2]).text, loads)
        sums = [self.named[y.serial] for y in body.yields]
        left, right = ", ".join([*names, *weights]), ", ".join([*sums, *weights])
        self.block(
            f"{left} = hopper.warpgroup_mma_wait(0, deps=({right}))", "mbarrier.arrive(free.index(slot), count=1)"
        )
        self.line("turn += 1")
        self.under_way = []

    def bring(self, node: Node, needs: dict[int, set[int]]) -> None:
        """The lines of the turn that a line needs, no sooner than it does: they take registers."""
        for operand in (a for a in operands(node) if needs.get(a.serial) and a.op is not TileOp.DOT):
            if operand.serial not in self.named:
                self.bring(operand, needs)
                if self.wants_a_line(operand):
                    self.await_products(needs[operand.serial])
                    self.assign(operand)

    def held(self, load: Node) -> str:
        """A kept tile's rows of this group."""
        return f"held.index({self.roles.held.index(load) * self.roles.groups} + GROUP)"

    def ask(self, dot: Node, left: str, more: str, loads: tuple[Node, ...]) -> None:
        """Begin a product with a tile of this turn."""
        tile = dot.args[1]
        turned = ".permute([1, 0])" if len(dot.args) == 2 else ""
        right = f"ring.index(slot * {len(loads)} + {loads.index(tile)}){turned}"
        name = self.named[dot.serial] = self.names.fresh("dot" if len(dot.args) == 2 else "sums")
        self.line(f"{name} = hopper.warpgroup_mma({left}, {right}, {more}, is_async=True)")
        self.under_way.append(dot)

    def await_products(self, wanted: set[int]) -> None:
        """Wait for the last product of those wanted that is under way, and so for all before it."""
        places = [k for k, dot in enumerate(self.under_way) if dot.serial in wanted]
        if places:
            done, self.under_way = self.under_way[: places[-1] + 1], self.under_way[places[-1] + 1 :]
            names = ", ".join(self.named[dot.serial] for dot in done)
            self.line(f"{names} = hopper.warpgroup_mma_wait({len(self.under_way)}, deps=({names},))")


class SumLoads(Loads):
    """Prints the loading warp's function."""

    roles: Sums

    def __init__(self, roles: Sums, taken: list[str]) -> None:
        loads = frozenset(roles.boxes)
        self.loops = [n for n in regions(roles.program).nodes[TOP] if n.op is TileOp.LOOP]

        def reads(node: Node) -> tuple[Node, ...]:
            if node.op is TileOp.LOOP:
                number = body_of(node).number
                return (*node.args[:2], *roles.loops[number], *roles.numbers[number])
            if node.op is TileOp.STORE:
                return (*roles.held, *self.loops)
            return places(node) if node.serial in loads else operands(node)

        super().__init__(roles, taken, uses(roles.program, reads=reads))

    def body(self) -> list[str]:
        """The lines of the function."""
        self.line("LANES: tl.constexpr = tl.BlockedLayout([1], [32], [1], [0])")
        for node in self.uses.order[TOP]:
            if node.op in (TileOp.PROGRAM_ID, TileOp.IOTA):
                self.assign(node)
        self.narrow_strides()
        self.line("turn = 0")
        self.region(TOP)
        return self.lines

    def expression(self, node: Node) -> Text:
        """As Triton says it, over the warp's lanes."""
        if node.op is TileOp.IOTA:
            return Text(f"tl.arange(0, {node.axes[0].size}, LANES)")
        return super().expression(node)

    def region(self, number: int) -> None:
        """The printed nodes of a region, kept tiles before the first loop."""
        for node in self.uses.order.get(number, ()):
            if node is self.loops[0]:
                self.keep()
            if node.op is TileOp.LOOP:
                self.loop(node)
            elif self.is_alone(node):
                self.assign(node)

    def keep(self) -> None:
        """The tiles that groups keep."""
        made = self.roles
        self.line(f"mbarrier.expect(held_full, {sum(map(self.bytes_of, made.held)) * made.groups})")
        for number, load in enumerate(made.held):
            for group in range(made.groups):
                self.line(
                    self.fetch(load, "held_full", f"held.index({number * made.groups + group})", GROUP_ROWS * group)
                )

    def loop(self, node: Node) -> None:
        """A turn's tiles together in one slot."""
        body = body_of(node)
        loads = self.roles.loops[body.number]
        index = self.named[body.index.serial] = self.names.fresh("i")
        self.line(f"for {index} in range({self.bounds(node)}):")
        self.depth += 1
        self.region(body.number)
        self.line("slot = turn % STAGES")
        self.line("mbarrier.wait(free.index(slot), (turn // STAGES + 1) & 1)")
        self.line(f"mbarrier.expect(full.index(slot), {sum(map(self.bytes_of, loads))})")
        for number, load in enumerate(loads):
            self.line(self.fetch(load, "full.index(slot)", f"ring.index(slot * {len(loads)} + {number})"))
        numbers = self.roles.numbers[body.number]
        for number, load in enumerate(numbers):
            self.line(f"numbers.index(slot * {len(numbers)} + {number}).store({self.text(load).text})")
        if numbers:
            self.line("mbarrier.arrive(full.index(slot), count=1)")
        self.line("turn += 1")
        self.depth -= 1
