"""What evaluating a value in place costs, in instructions; and how an index moves along an axis."""

from __future__ import annotations

from sparsec.backends.tvm.lanes import Lanes
from sparsec.scalar.fn import Fn
from sparsec.tile.language import Access, Axis, Node, TileOp

FREE = frozenset({TileOp.CONST, TileOp.FULL, TileOp.IOTA, TileOp.PARAM, TileOp.PROGRAM_ID, TileOp.INDEX})
STORED = frozenset(
    {TileOp.DOT, TileOp.REDUCE, TileOp.SCAN, TileOp.LOOP, TileOp.TOP_INSERT, TileOp.STORE, TileOp.MASK_IF}
)
"""Operations that always become statements of their own."""

HALVES = frozenset({"float16", "bfloat16"})
_CALLS: dict[Fn, int] = {
    Fn.DIV: 5, Fn.EXP: 13, Fn.EXP2: 11, Fn.LOG: 20, Fn.LOG2: 20, Fn.SQRT: 8, Fn.RSQRT: 12, Fn.TANH: 30, Fn.SIGMOID: 20,
    Fn.RANK: 6, Fn.TRUNCDIV: 5, Fn.TRUNCMOD: 7,
}  # fmt: skip


def indices(node: Node) -> tuple[Node, ...]:
    """The index of every dimension of a load or store."""
    return node.args[: access(node).tensor.rank]


def bounds(node: Node) -> dict[int, Node]:
    """The bound of every bounded dimension of a load or store."""
    how = access(node)
    return dict(zip(how.bounded, node.args[how.tensor.rank :], strict=False))


def access(node: Node) -> Access:
    """How a load or store addresses memory."""
    how = node.attrs[0]
    assert isinstance(how, Access)
    return how


def slope(node: Node, axis: Axis | None) -> int | None:
    """By how much an integer value grows from one index of ``axis`` to the next; None if that is not one number."""
    if axis is None or axis not in node.axes:
        return 0
    if node.op is TileOp.IOTA:
        return 1
    if node.op is TileOp.RENAME:
        old, new = node.attrs
        assert isinstance(old, Axis)
        return slope(node.args[0], old if axis == new else axis)
    if node.op is not TileOp.MAP or node.dtype not in ("int32", "int64"):
        return None
    if node.attrs[0] in (Fn.ADD, Fn.SUB, Fn.MUL):
        return _slope_of_sum(node, axis)
    return None


def _is_affine(node: Node) -> bool:
    """Whether a value is index arithmetic that folds into an address."""
    return node.dtype in ("int32", "int64") and all(slope(node, axis) is not None for axis in node.axes)


def _slope_of_sum(node: Node, axis: Axis) -> int | None:
    a, b = node.args
    x, y = slope(a, axis), slope(b, axis)
    if x is None or y is None:
        return None
    if node.attrs[0] is Fn.MUL:
        factors = [(s, c.attrs[0]) for s, c in ((x, b), (y, a)) if c.op is TileOp.CONST]
        return factors[0][0] * factors[0][1] if factors and isinstance(factors[0][1], int) else None
    return x + y if node.attrs[0] is Fn.ADD else x - y


def is_unit(node: Node, axis: Axis | None) -> bool:
    """Whether a load along ``axis`` reads neighbours in memory."""
    slopes = [slope(i, axis) for i in indices(node)]
    return slopes[-1] == 1 and not any(slopes[:-1])


class Cost:
    """Instructions for one vector (or, without a lane axis, one element) of a value computed in place."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._known: dict[tuple[int, Axis | None], float] = {}

    def of(self, node: Node, lane: Axis | None) -> float:
        """The cost of ``node`` with its vectors along ``lane``; what is stored costs one read."""
        lane = lane if lane in node.axes else None
        key = (node.serial, lane)
        if key not in self._known:
            self._known[key] = self._of(node, lane)
        return self._known[key]

    def _of(self, node: Node, lane: Axis | None) -> float:
        if not node.axes or node.op in FREE:
            return 0.0
        if node.op in STORED or node.op in (TileOp.CARRY, TileOp.RESULT):
            return 1.0
        if node.op is TileOp.LOAD:
            return self.load(node, lane)
        if _is_affine(node):
            return 0.0
        return self._own(node) + sum(self.of(a, self._through(node, lane)) for a in node.args)

    def _own(self, node: Node) -> float:
        if node.op is TileOp.RENAME:
            return 0.0
        if node.op is TileOp.CAST:
            return 4.0 if node.dtype == "bfloat16" else 2.0 if node.dtype == "float16" else 1.0
        assert isinstance(node.attrs[0], Fn)
        return _CALLS.get(node.attrs[0], 1) + (4.0 if node.dtype in HALVES else 0.0)

    @staticmethod
    def _through(node: Node, lane: Axis | None) -> Axis | None:
        """The lane axis under a rename."""
        if node.op is TileOp.RENAME and lane == node.attrs[1]:
            old = node.attrs[0]
            assert isinstance(old, Axis)
            return old
        return lane

    def load(self, node: Node, lane: Axis | None, checked: bool = True) -> float:
        """One load: a vector of neighbours is one instruction, anything else one per lane."""
        width = 1 if lane is None else self._lanes.width(lane)
        along = [slope(i, lane) for i in indices(node)]
        cost = 1.0 if lane is None or is_unit(node, lane) else float(width)
        if None in along:
            cost = 2.0 * width + sum(self.of(i, lane) for i in indices(node))
        if checked and bounds(node):
            cost += 2.0 if not any(along[d] != 0 for d in bounds(node)) else float(width)
        return cost + (2.0 if access(node).tensor.dtype in HALVES else 0.0)
