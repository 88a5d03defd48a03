"""Which values become statements with a place of their own, and which are computed where they are read.

One pass from the effects backwards counts how often each value would be computed in place; it is stored where that
costs more instructions than computing it once and reading it back. Scalars are named where they are used again.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from sparsec.backends.tvm.cost import FREE, STORED, Cost
from sparsec.backends.tvm.demands import Demand, Demands, Stage
from sparsec.backends.tvm.lanes import Lanes
from sparsec.backends.tvm.tiles import DotPlan, plan_dot
from sparsec.tile.build import children, reachable
from sparsec.tile.language import Axis, Node, Program, TileOp
from sparsec.tile.regions import Regions, body_of, regions

LEAVES = FREE | {TileOp.CARRY, TileOp.RESULT}


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
        self.demands = Demands(lanes, where, dots)
        bodies = [body_of(n) for n in nodes if n.op is TileOp.LOOP]
        self.yields = {y.serial for body in bodies for y in body.yields if where.home[y.serial] == body.number}

    def run(self) -> Decisions:
        for node in reversed(self.nodes):
            if node.op in LEAVES:
                continue
            stage = self.stage(node)
            if stage is None:
                self.demands.inline(node)
            else:
                self.found.stages[node.serial] = stage
                self.demands.read_by(stage)
        self.mark_indexed()
        return self.found

    def stage(self, node: Node) -> Stage | None:
        if node.op in STORED:
            return Stage(node, *self.space(node))
        if not node.axes:
            return Stage(node, (), None) if self.is_named(node) else None
        want = self.demands.of[node.serial]
        lane = self.lane(node, want)
        if node.serial in self.yields:
            return Stage(node, node.axes, lane)
        turn, each = self.turned(node, lane)
        inline = self.in_place(node, want)
        once = self.demands.vectors(node.axes, lane) * self.demands.times(node) * (each + 1)
        reads = sum(n * (1 if a == lane else self.lanes.width(a)) for a, n in want.vectors.items()) + want.elements
        if node.dtype == "bool":
            reads *= 3
        return Stage(node, node.axes, lane, turn) if once + reads < inline else None

    def in_place(self, node: Node, want: Demand) -> float:
        """The instructions if every reader computes the value itself."""
        if node.serial in self.demands.direct:
            vectors = sum(n * self.cost.load(node, a, False) for a, n in want.vectors.items())
            return vectors + want.elements * self.cost.load(node, None, False)
        vectors = sum(n * self.cost.of(node, a) for a, n in want.vectors.items())
        return vectors + want.elements * self.cost.of(node, None)

    def turned(self, node: Node, lane: Axis | None) -> tuple[Axis | None, float]:
        """The axis along which to compute vectors, if not ``lane``, and the cost of one vector."""
        plain = self.cost.of(node, lane)
        if lane is None or self.lanes.width(lane) < 4 or node.dtype == "bool":
            return None, plain
        shuffles = math.log2(self.lanes.width(lane))
        wide = [a for a in node.axes if a != lane and self.lanes.width(a) == self.lanes.width(lane)]
        choices = [a for a in wide if _loads_over(node, lane, a)]
        best = min(choices, key=lambda a: self.cost.of(node, a), default=None)
        if best is None or self.cost.of(node, best) + shuffles >= plain:
            return None, plain
        return best, self.cost.of(node, best) + shuffles

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

    def mark_indexed(self) -> None:
        """Collect stored values read by element; a carry, its yield and its result share one place."""
        indexed = self.found.indexed
        indexed |= {serial for serial, want in self.demands.of.items() if want.elements}
        indexed |= {
            n.serial for n in self.nodes if n.op is TileOp.REDUCE and n.attrs[1] == self.found.stages[n.serial].lane
        }
        for stage in (s for s in self.found.stages.values() if s.turn is not None and self.lanes.chunks(s.turn) > 1):
            indexed |= {n.serial for n in self.read_by(stage) if n.axes == (stage.turn,)}  # in a loop over its vectors
        places: dict[tuple[int, int], list[Node]] = {}
        for loop in (n for n in self.nodes if n.op is TileOp.LOOP):
            for k, pair in enumerate(zip(body_of(loop).carries, body_of(loop).yields, strict=True)):
                places[loop.serial, k] = list(pair)
        for node in (n for n in self.nodes if n.op is TileOp.RESULT):
            position = node.attrs[0]
            assert isinstance(position, int)
            places[node.args[0].serial, position].append(node)
        _spread(list(places.values()), indexed)

    def read_by(self, stage: Stage) -> list[Node]:
        """The stored values that a stage reads."""
        found, seen, stack = list[Node](), set[int](), [*stage.node.args]
        while stack:
            node = stack.pop()
            if node.serial in self.found.stages:
                found.append(node)
            elif node.serial not in seen:
                seen.add(node.serial)
                stack += node.args
        return found


def _loads_over(node: Node, lane: Axis, turn: Axis) -> bool:
    """Whether a value is made of loads over both axes and of scalars."""
    if not node.axes or node.op in FREE:
        return True
    if node.op is TileOp.LOAD:
        return {lane, turn} <= set(node.axes)
    return node.op in (TileOp.MAP, TileOp.CAST) and all(_loads_over(a, lane, turn) for a in node.args)


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
