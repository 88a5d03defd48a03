"""Which values become statements with a place of their own, and which are computed where they are read.

One pass from the effects backwards counts how often each value would be computed in place; it is stored where that
costs more instructions than computing it once and reading it back. Scalars are named where they are used again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from sparsec.backends.tvm.cost import FREE, STORED, Cost, bounds, indices, slope
from sparsec.backends.tvm.lanes import Lanes
from sparsec.backends.tvm.tiles import DotPlan, plan_dot
from sparsec.tile.build import children, reachable
from sparsec.tile.language import Axis, Node, Program, TileOp
from sparsec.tile.regions import Regions, body_of, regions

TRIPS = 8.0
"""How often a loop is taken to run."""

LEAVES = FREE | {TileOp.CARRY, TileOp.RESULT}


@dataclass(frozen=True, slots=True)
class Stage:
    """A value that is computed by statements of its own, over ``space``, in vectors along ``lane``."""

    node: Node
    space: tuple[Axis, ...]
    lane: Axis | None


@dataclass(slots=True)
class Demand:
    """How often a value is read: in vectors along an axis, and element by element."""

    vectors: dict[Axis, float] = field(default_factory=lambda: defaultdict(float))
    elements: float = 0.0


@dataclass(slots=True)
class Decisions:
    """What the pass found out.

    Attributes:
        stages: by serial number.
        indexed: stored values that are read element by element, so that they cannot live in registers.
        users: who reads a node.
    """

    lanes: Lanes
    regions: Regions
    stages: dict[int, Stage]
    indexed: set[int]
    users: dict[int, list[Node]]
    dots: dict[int, DotPlan]


def decide(program: Program, lanes: Lanes, accumulators: int) -> Decisions:
    """The stages of a program."""
    return _Pass(program, lanes, accumulators).run()


def elements(axes: Sequence[Axis]) -> int:
    """The number of elements of a tile."""
    count = 1
    for axis in axes:
        count *= axis.size
    return count


class _Pass:
    def __init__(self, program: Program, lanes: Lanes, accumulators: int) -> None:
        nodes, where = reachable(program.effects), regions(program)
        users: dict[int, list[Node]] = defaultdict(list)
        for node in nodes:
            for child in dict.fromkeys(children(node)):
                users[child.serial].append(node)
        dots = {n.serial: plan_dot(n, lanes, accumulators, where.home) for n in nodes if n.op is TileOp.DOT}
        self.nodes, self.lanes, self.cost = nodes, lanes, Cost(lanes)
        self.found = Decisions(lanes, where, {}, set(), users, dots)
        self.demands: dict[int, Demand] = defaultdict(Demand)
        self.direct: set[int] = set()  # loads that a dot reads: it deals with their bounds once per row
        bodies = [body_of(n) for n in nodes if n.op is TileOp.LOOP]
        self.yields = {y.serial for body in bodies for y in body.yields if where.home[y.serial] == body.number}

    def run(self) -> Decisions:
        for node in reversed(self.nodes):
            if node.op in LEAVES:
                continue
            stage = self.stage(node)
            if stage is None:
                self.inline(node)
            else:
                self.found.stages[node.serial] = stage
                self.read_by(stage)
        self.mark_indexed()
        return self.found

    def times(self, node: Node) -> float:
        """How often the region of a node runs."""
        home = self.found.regions.home[node.serial]
        return TRIPS ** (len(list(self.found.regions.enclosing(home))) - 1)

    def vectors(self, space: Sequence[Axis], lane: Axis | None) -> float:
        return elements(space) / (self.lanes.width(lane) if lane else 1)

    def stage(self, node: Node) -> Stage | None:
        if node.op in STORED:
            return Stage(node, *self.space(node))
        if not node.axes:
            return Stage(node, (), None) if self.is_named(node) else None
        want = self.demands[node.serial]
        lane = self.lane(node, want)
        stage = Stage(node, node.axes, lane)
        if node.serial in self.yields:
            return stage
        checked = node.serial not in self.direct
        inline = sum(n * self.cost.of(node, a) for a, n in want.vectors.items()) + want.elements * self.cost.of(
            node, None
        )
        if not checked:
            inline = sum(n * self.cost.load(node, a, False) for a, n in want.vectors.items())
            inline += want.elements * self.cost.load(node, None, False)
        once = self.vectors(node.axes, lane) * self.times(node) * (self.cost.of(node, lane) + 1)
        reads = sum(n * (1 if a == lane else self.lanes.width(a)) for a, n in want.vectors.items()) + want.elements
        if node.dtype == "bool":
            reads *= 3
        return stage if once + reads < inline else None

    def is_named(self, node: Node) -> bool:
        """Whether a scalar gets a name: integers that are read once, where they are made, do not."""
        users = self.found.users[node.serial]
        simple = node.op is TileOp.MAP and node.dtype in ("int32", "bool")
        home = self.found.regions.home
        once = len(users) == 1 and users[0].op is not TileOp.LOOP and home[users[0].serial] == home[node.serial]
        return node.serial in self.yields or not (simple and once)

    def lane(self, node: Node, want: Demand) -> Axis | None:
        """The lane axis of an elementwise stage: as its readers want it, else the cheapest."""
        if want.vectors:
            return max(want.vectors, key=lambda a: (want.vectors[a], -a.rank))
        if node.serial in self.yields:
            return self.lanes.pick(node.axes)
        choices = [a for a in node.axes if self.lanes.width(a) > 1]
        return min(choices, key=lambda a: (self.cost.of(node, a) / self.lanes.width(a), a.rank), default=None)

    def space(self, node: Node) -> tuple[tuple[Axis, ...], Axis | None]:
        if node.op is TileOp.DOT:
            tile = self.found.dots[node.serial].tile
            return tile.space, tile.lane
        if node.op is TileOp.REDUCE:
            return node.args[0].axes, self.lanes.pick(node.args[0].axes)
        if node.op is TileOp.SCAN:
            return node.axes, self.lanes.pick(a for a in node.axes if a != node.attrs[0])
        if node.op is TileOp.TOP_INSERT:
            keys, new = node.args
            return node.axes, self.lanes.pick(a for a in keys.axes if a != node.attrs[0] and a in new.axes)
        return node.axes, self.lanes.pick(node.axes) if node.op is not TileOp.LOOP else None

    def want(self, node: Node, lane: Axis | None, count: float) -> None:
        """``node`` is read ``count`` times in vectors along ``lane``, or as scalars where it lacks that axis."""
        if lane in node.axes and lane is not None:
            self.demands[node.serial].vectors[lane] += count
        elif node.axes:
            self.demands[node.serial].elements += count

    def inline(self, node: Node) -> None:
        """What a value computed in place asks of its operands is what its readers ask of it."""
        want = self.demands[node.serial]
        for axis, count in want.vectors.items():
            self.operands(node, axis, count)
        if want.elements:
            self.operands(node, None, want.elements)

    def operands(self, node: Node, lane: Axis | None, count: float) -> None:
        if node.op is TileOp.RENAME and lane == node.attrs[1]:
            lane = node.attrs[0]  # type: ignore[assignment]
        if node.op in (TileOp.LOAD, TileOp.STORE):
            for index in indices(node):
                gathered = slope(index, lane) is None
                self.want(index, lane if gathered else None, count)
                if gathered and node.op is TileOp.STORE:
                    self.want(index, None, 1.0)  # checked stores go lane by lane
            for bound in bounds(node).values():
                self.want(bound, None, count)
            if node.op is TileOp.STORE:
                self.want(node.args[-1], lane, count)
            return
        for arg in node.args:
            self.want(arg, lane, count)

    def read_by(self, stage: Stage) -> None:
        node, times = stage.node, self.times(stage.node)
        if node.op is TileOp.DOT:
            self.read_by_dot(node, times)
        elif node.op is TileOp.LOOP:
            self.read_by_loop(node, times)
        elif node.op is TileOp.TOP_INSERT:
            self.want(node.args[0], stage.lane, times * self.vectors(node.axes, stage.lane))
            self.want(node.args[1], stage.lane, times * self.vectors(node.args[1].axes, stage.lane))
        else:
            self.operands(node, stage.lane, times * self.vectors(stage.space, stage.lane))

    def read_by_dot(self, node: Node, times: float) -> None:
        plan = self.found.dots[node.serial]
        tile, over = plan.tile, plan.over
        if len(node.args) > 2:
            self.want(node.args[2], tile.lane, times * self.vectors(node.axes, tile.lane))
        products = times * elements(node.axes) * over.size
        self.direct |= {operand.serial for operand in node.args[:2] if operand.op is TileOp.LOAD}
        if plan.inner:
            for operand in (plan.vector, plan.other):
                self.want(operand, over, products / self.lanes.width(over))
            return
        width = self.lanes.width(tile.lane) if tile.lane else 1
        self.want(plan.vector, tile.lane, products / width / tile.rows)
        self.want(plan.other, None, products / width / tile.columns)

    def read_by_loop(self, node: Node, times: float) -> None:
        body = body_of(node)
        for init, out in zip(node.args[2:], body.yields, strict=True):
            lane = self.lanes.pick(init.axes)
            self.want(init, lane, times * self.vectors(init.axes, lane))
            self.want(out, lane, times * TRIPS * self.vectors(out.axes, lane))

    def mark_indexed(self) -> None:
        """Collect stored values read by element; a carry, its yield and its result share one place."""
        indexed = self.found.indexed
        indexed |= {serial for serial, want in self.demands.items() if want.elements}
        indexed |= {
            n.serial for n in self.nodes if n.op is TileOp.REDUCE and n.attrs[1] == self.found.stages[n.serial].lane
        }
        places: dict[tuple[int, int], list[Node]] = {}
        for loop in (n for n in self.nodes if n.op is TileOp.LOOP):
            for k, pair in enumerate(zip(body_of(loop).carries, body_of(loop).yields, strict=True)):
                places[loop.serial, k] = list(pair)
        for node in (n for n in self.nodes if n.op is TileOp.RESULT):
            position = node.attrs[0]
            assert isinstance(position, int)
            places[node.args[0].serial, position].append(node)
        _spread(list(places.values()), indexed)


def _spread(same: list[list[Node]], indexed: set[int]) -> None:
    """Until nothing changes: one indexed member makes its whole place indexed."""
    changed = True
    while changed:
        changed = False
        for place in same:
            serials = {n.serial for n in place}
            if serials & indexed and not serials <= indexed:
                indexed |= serials
                changed = True
