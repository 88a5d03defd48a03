"""How often each value is read, and how: in vectors along some axis, or element by element."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sparsec.backends.tvm.cost import bounds, indices, slope
from sparsec.backends.tvm.lanes import Lanes
from sparsec.backends.tvm.tiles import DotPlan
from sparsec.tile.language import Axis, Node, TileOp
from sparsec.tile.regions import Regions, body_of

TRIPS = 8.0
"""How often a loop is taken to run."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A value that is computed by statements of its own, over ``space``, in vectors along ``lane``.

    Attributes:
        turn: the axis along which its vectors are computed if that is not ``lane``; blocks are then transposed.
    """

    node: Node
    space: tuple[Axis, ...]
    lane: Axis | None
    turn: Axis | None = None


@dataclass(slots=True)
class Demand:
    """How often a value is read: in vectors along an axis, and element by element."""

    vectors: dict[Axis, float] = field(default_factory=lambda: defaultdict(float))
    elements: float = 0.0


def elements(axes: Sequence[Axis]) -> int:
    """The number of elements of a tile."""
    count = 1
    for axis in axes:
        count *= axis.size
    return count


class Demands:
    """The reads of every value, filled from the effects backwards.

    Attributes:
        of: by serial number.
        direct: loads that a dot reads; it deals with their bounds once per row.
    """

    def __init__(self, lanes: Lanes, where: Regions, dots: Mapping[int, DotPlan]) -> None:
        self._lanes, self._regions, self._dots = lanes, where, dots
        self.of: dict[int, Demand] = defaultdict(Demand)
        self.direct: set[int] = set()

    def times(self, node: Node) -> float:
        """How often the region of a node runs."""
        home = self._regions.home[node.serial]
        return TRIPS ** (len(list(self._regions.enclosing(home))) - 1)

    def vectors(self, space: Sequence[Axis], lane: Axis | None) -> float:
        """Vectors (or, without lanes, elements) of a tile."""
        return elements(space) / (self._lanes.width(lane) if lane else 1)

    def _want(self, node: Node, lane: Axis | None, count: float) -> None:
        """``node`` is read ``count`` times in vectors along ``lane``, or as scalars where it lacks that axis."""
        if lane in node.axes and lane is not None:
            self.of[node.serial].vectors[lane] += count
        elif node.axes:
            self.of[node.serial].elements += count

    def inline(self, node: Node) -> None:
        """What a value computed in place asks of its operands is what its readers ask of it."""
        want = self.of[node.serial]
        for axis, count in want.vectors.items():
            self._operands(node, axis, count)
        if want.elements:
            self._operands(node, None, want.elements)

    def _operands(self, node: Node, lane: Axis | None, count: float) -> None:
        if node.op is TileOp.RENAME and lane == node.attrs[1]:
            lane = node.attrs[0]  # type: ignore[assignment]
        if node.op in (TileOp.LOAD, TileOp.STORE):
            for index in indices(node):
                gathered = slope(index, lane) is None
                self._want(index, lane if gathered else None, count)
                if gathered and node.op is TileOp.STORE:
                    self._want(index, None, 1.0)  # checked stores go lane by lane
            for bound in bounds(node).values():
                self._want(bound, None, count)
            if node.op is TileOp.STORE:
                self._want(node.args[-1], lane, count)
            return
        for arg in node.args:
            self._want(arg, lane, count)

    def read_by(self, stage: Stage) -> None:
        """What a stage asks of its operands."""
        node, times = stage.node, self.times(stage.node)
        if node.op is TileOp.DOT:
            self._read_by_dot(node, times)
        elif node.op is TileOp.LOOP:
            self._read_by_loop(node, times)
        elif node.op is TileOp.TOP_INSERT:
            self._want(node.args[0], stage.lane, times * self.vectors(node.axes, stage.lane))
            self._want(node.args[1], stage.lane, times * self.vectors(node.args[1].axes, stage.lane))
        else:
            self._operands(node, stage.turn or stage.lane, times * self.vectors(stage.space, stage.lane))

    def _read_by_dot(self, node: Node, times: float) -> None:
        plan = self._dots[node.serial]
        tile, over = plan.tile, plan.over
        if len(node.args) > 2:
            self._want(node.args[2], tile.lane, times * self.vectors(node.axes, tile.lane))
        products = times * elements(node.axes) * over.size
        self.direct |= {operand.serial for operand in node.args[:2] if operand.op is TileOp.LOAD}
        if plan.inner:
            for operand in (plan.vector, plan.other):
                self._want(operand, over, products / self._lanes.width(over))
            return
        width = self._lanes.width(tile.lane) if tile.lane else 1
        self._want(plan.vector, tile.lane, products / width / tile.rows)
        self._want(plan.other, None, products / width / tile.columns)

    def _read_by_loop(self, node: Node, times: float) -> None:
        body = body_of(node)
        for init, out in zip(node.args[2:], body.yields, strict=True):
            lane = self._lanes.pick(init.axes)
            self._want(init, lane, times * self.vectors(init.axes, lane))
            self._want(out, lane, times * TRIPS * self.vectors(out.axes, lane))
