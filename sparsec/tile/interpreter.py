"""Runs a tile program on the CPU with torch: the meaning of the language, and the test of every lowering.

Grid points run side by side, in lanes: a value that differs between them has their number as its first dimension, and
one that does not is worked out once. Loops end when the last lane's does; lanes that are done keep what they carried.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, cast

import torch
from torch import Tensor

from sparsec.scalar.fn import COMPARISONS, LOGIC, Fn
from sparsec.tile.arithmetic import FUNCTIONS, tf32
from sparsec.tile.lanes import from_end, matrices, permuted, product, spread
from sparsec.tile.language import Axis, Node, Program, TileOp, access_of
from sparsec.tile.memory import Memory, check_tensors
from sparsec.tile.regions import TOP, body_of, regions
from sparsec.tile.scalars import grid_of

Mode = Literal["exact", "storage"]
Point = tuple[int, ...]

_TOGETHER = 1 << 18
"""How many elements the largest value may have in all lanes."""

_INTEGERS = {"int32": torch.int32, "int64": torch.int64, "bool": torch.bool}
_HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@torch.no_grad()
def interpret(
    program: Program,
    tensors: Mapping[str, Tensor],
    params: Mapping[str, int | float],
    mode: Mode = "storage",
    poison: float = math.nan,
    points: Iterable[Point] | None = None,
) -> None:
    """Run a program over its grid (or some ``points`` of it) and write its outputs in place.

    ``mode="storage"`` computes in fp32 and rounds wherever the program casts, so tensors have their declared dtypes;
    ``mode="exact"`` computes in fp64 and never rounds, so float tensors may have any dtype. ``poison`` is what loads
    give outside their bounds where the program asks for nothing. Raises AccessError where memory is misused and
    ValueError where tensors do not fit the program.
    """
    check_tensors(program, tensors, exact=mode == "exact")
    machine = _Machine(program, tensors, params, mode, poison)
    grid = grid_of(program, {k: int(v) for k, v in params.items()})
    every = iter(points if points is not None else itertools.product(*map(range, grid)))
    while some := list(itertools.islice(every, machine.lanes)):
        machine.run(torch.tensor(some, dtype=torch.int64), grid)


class _Machine:
    """The state of one run: memory, launch parameters and the values at the current grid points.

    Attributes:
        lanes: how many grid points run at once.
        points: the current ones, ``[lane, dimension]``.
        numbers: of the current ones, ``[lane]``.
        active: the lanes that take part in the current iteration, ``[lane]``; None: all of them.
    """

    def __init__(
        self,
        program: Program,
        tensors: Mapping[str, Tensor],
        params: Mapping[str, int | float],
        mode: Mode,
        poison: float,
    ) -> None:
        self.memory = Memory(dict(tensors), poison)
        self.params = params
        self.exact = mode == "exact"
        self.float = torch.float64 if self.exact else torch.float32
        self.points = self.numbers = torch.empty(0)
        self.active: Tensor | None = None
        self.regions = regions(program)
        everything = [n for nodes in self.regions.nodes.values() for n in nodes]
        self.lanes = max(1, _TOGETHER // max((math.prod(a.size for a in n.axes) for n in everything), default=1))
        self.values = {n.serial: FIXED[n.op](self, n) for n in everything if n.op in FIXED}
        self.carried: dict[int, list[Tensor]] = {}
        self.steps = {
            region: [(n, EVALUATE[n.op]) for n in nodes if n.op in EVALUATE]
            for region, nodes in self.regions.nodes.items()
        }

    def run(self, points: Tensor, grid: Point) -> None:
        """Some grid points."""
        self.points = points
        self.numbers = torch.zeros(len(points), dtype=torch.int64)
        for dimension, extent in enumerate(grid):
            self.numbers = self.numbers * extent + points[:, dimension]
        self.region(TOP)

    def region(self, number: int) -> None:
        """Every node of a region once."""
        for node, evaluate in self.steps.get(number, ()):
            value = evaluate(self, node)
            if value is not None:
                self.values[node.serial] = value

    def at(self, node: Node, to: tuple[Axis, ...]) -> Tensor:
        """The value of a node, broadcastable over lanes and the axes ``to``."""
        value = self.values[node.serial]
        if node.axes == to or not value.dim():
            return value
        return value[spread(node.axes, to, value.dim() > len(node.axes))]

    def over(self, each: Tensor, axes: tuple[Axis, ...]) -> Tensor:
        """A number per lane, broadcastable over axes."""
        return each.view(-1, *[1] * len(axes))

    def among(self, axes: tuple[Axis, ...]) -> Tensor | None:
        """The active lanes, broadcastable over axes."""
        return None if self.active is None else self.over(self.active, axes)

    def dtype(self, name: str) -> torch.dtype:
        """The torch dtype in which values of a tile dtype are computed."""
        return _INTEGERS.get(name, self.float)

    def rounded(self, value: Tensor, name: str) -> Tensor:
        """A value as its dtype stores it."""
        value = value.to(self.dtype(name))
        return value.to(_HALVES[name]).to(self.float) if name in _HALVES and not self.exact else value


def _constant(machine: _Machine, node: Node) -> Tensor:
    shape = [axis.size for axis in node.axes]
    value = cast(float, node.attrs[0])
    return machine.rounded(torch.full(shape, value, dtype=machine.dtype(node.dtype)), node.dtype)


def _param(machine: _Machine, node: Node) -> Tensor:
    return torch.tensor(machine.params[str(node.attrs[0])], dtype=machine.dtype(node.dtype))


def _program_id(machine: _Machine, node: Node) -> Tensor:
    return machine.points[:, cast(int, node.attrs[0])].to(torch.int32)


def _iota(machine: _Machine, node: Node) -> Tensor:
    return torch.arange(node.axes[0].size, dtype=torch.int32)


def _map(machine: _Machine, node: Node) -> Tensor:
    fn = node.attrs[0]
    assert isinstance(fn, Fn)
    xs = [machine.at(a, node.axes) for a in node.args]
    if fn in LOGIC and node.dtype == "bool":
        xs = [x.to(torch.bool) for x in xs]
    elif fn in COMPARISONS:
        wide = xs[0].dtype if xs[0].dtype is xs[1].dtype else torch.promote_types(xs[0].dtype, xs[1].dtype)
        xs = [x.to(wide) for x in xs]
    elif fn is Fn.WHERE:
        xs = [xs[0].to(torch.bool), *(x.to(machine.dtype(node.dtype)) for x in xs[1:])]
    elif fn not in (Fn.RANK, Fn.RANK_ID, Fn.RANK_SCORE):
        xs = [x.to(machine.dtype(node.dtype)) for x in xs]
    return machine.rounded(FUNCTIONS[fn](*xs), node.dtype)


def _mask_if(machine: _Machine, node: Node) -> Tensor:
    condition, mask, x, other = (machine.at(a, node.axes) for a in node.args)
    return torch.where(mask | ~condition, x, other.to(x.dtype))


def _load(machine: _Machine, node: Node) -> Tensor:
    rank = access_of(node).tensor.rank
    xs = [machine.at(a, node.axes) for a in node.args]
    among = machine.among(node.axes) if _apart(node, xs) else None
    return machine.rounded(machine.memory.load(node, xs[:rank], xs[rank:], among), node.dtype)


def _store(machine: _Machine, node: Node) -> None:
    rank = access_of(node).tensor.rank
    *xs, value = (machine.at(a, node.axes) for a in node.args)
    if _apart(node, [*xs, value]):
        programs, among = machine.over(machine.numbers, node.axes), machine.among(node.axes)
    else:
        programs, among = machine.numbers[0 if machine.active is None else machine.active.nonzero()[0, 0]], None
    machine.memory.store(node, xs[:rank], xs[rank:], value, programs, among)


def _apart(node: Node, values: Iterable[Tensor]) -> bool:
    """Whether any value of an access differs between lanes; if not, one access does for all of them."""
    return any(x.dim() > len(node.axes) for x in values)


def _dot(machine: _Machine, node: Node) -> Tensor:
    (a, b), (over, precision) = node.args[:2], node.attrs
    assert isinstance(over, Axis)
    x, y = machine.values[a.serial], machine.values[b.serial]
    if precision == "tf32" and not machine.exact and a.dtype == "float32":
        x, y = tf32(x), tf32(y)
    left, right = (tuple(axis for axis in side.axes if axis != over) for side in (a, b))
    made = product(matrices(x, a.axes, (left, (over,))), matrices(y, b.axes, ((over,), right)))
    axes = (*left, *right)
    tiles = made.view(*made.shape[:-2], *(axis.size for axis in axes))
    found = permuted(tiles, [axes.index(axis) for axis in node.axes])
    return found + machine.values[node.args[2].serial] if len(node.args) == 3 else found


def _reduce(machine: _Machine, node: Node) -> Tensor:
    kind, axis = node.attrs
    (x,) = node.args
    assert isinstance(axis, Axis)
    reducers: dict[object, Callable[..., Tensor]] = {"sum": torch.sum, "max": torch.amax, "min": torch.amin}
    return machine.rounded(reducers[kind](machine.values[x.serial], dim=from_end(x.axes, axis)), node.dtype)


def _scan(machine: _Machine, node: Node) -> Tensor:
    (axis,) = node.attrs
    assert isinstance(axis, Axis)
    return machine.rounded(machine.values[node.args[0].serial].cumsum(from_end(node.axes, axis)), node.dtype)


def _rename(machine: _Machine, node: Node) -> Tensor:
    old, new = node.attrs
    names = [new if axis == old else axis for axis in node.args[0].axes]
    return permuted(machine.values[node.args[0].serial], [names.index(axis) for axis in node.axes])


def _cast(machine: _Machine, node: Node) -> Tensor:
    return machine.rounded(machine.values[node.args[0].serial], node.dtype)


def _top_insert(machine: _Machine, node: Node) -> Tensor:
    slots, candidates = node.attrs
    keys, new = node.args
    assert isinstance(slots, Axis) and isinstance(candidates, Axis)
    rows = tuple(axis for axis in keys.axes if axis != slots)
    last = [*(keys.axes.index(axis) for axis in rows), keys.axes.index(slots)]
    kept = permuted(machine.values[keys.serial], last)
    more = machine.values[new.serial].movedim(from_end(new.axes, candidates), -1)
    lanes = more.dim() > len(new.axes)
    more = more[(*spread(tuple(axis for axis in new.axes if axis != candidates), rows, lanes), slice(None))]
    lead = torch.broadcast_shapes(kept.shape[:-1], more.shape[:-1])
    both = torch.cat([x.expand(*lead, x.shape[-1]) for x in (kept, more)], -1)
    best = both.sort(-1, descending=True).values[..., : slots.size]
    return permuted(best, [last.index(k) for k in range(len(last))])


def _loop(machine: _Machine, node: Node) -> None:
    body, around = body_of(node), machine.active
    lo, hi, *carried = (machine.values[a.serial] for a in node.args)
    trips = torch.div(hi.long() - lo.long() + (body.step - 1), body.step, rounding_mode="floor")
    trips = trips if around is None else torch.where(around, trips, 0)
    fewest, most = int(trips.min()), int(trips.max())
    for trip in range(most):
        machine.active = None if trip < fewest else trips > trip
        machine.values[body.index.serial] = (lo + trip * body.step).to(torch.int32)
        for carry, value in zip(body.carries, carried, strict=True):
            machine.values[carry.serial] = value
        machine.region(body.number)
        carried = [_kept(machine, y, old) for y, old in zip(body.yields, carried, strict=True)]
    machine.active = around
    machine.carried[node.serial] = carried


def _kept(machine: _Machine, new: Node, old: Tensor) -> Tensor:
    """What is carried on: by lanes that are done, what they had."""
    among, value = machine.among(new.axes), machine.values[new.serial]
    return value if among is None else torch.where(among, value, old)


def _result(machine: _Machine, node: Node) -> Tensor:
    return machine.carried[node.args[0].serial][cast(int, node.attrs[0])]


FIXED: dict[TileOp, Callable[[_Machine, Node], Tensor]] = {
    TileOp.CONST: _constant,
    TileOp.PARAM: _param,
    TileOp.IOTA: _iota,
    TileOp.FULL: _constant,
}
"""How the ops are computed whose value is the same in every grid point."""

EVALUATE: dict[TileOp, Callable[[_Machine, Node], Tensor | None]] = {
    TileOp.PROGRAM_ID: _program_id,
    TileOp.MAP: _map,
    TileOp.MASK_IF: _mask_if,
    TileOp.LOAD: _load,
    TileOp.STORE: _store,
    TileOp.DOT: _dot,
    TileOp.REDUCE: _reduce,
    TileOp.SCAN: _scan,
    TileOp.RENAME: _rename,
    TileOp.CAST: _cast,
    TileOp.TOP_INSERT: _top_insert,
    TileOp.LOOP: _loop,
    TileOp.RESULT: _result,
}
"""How the others are; the values of INDEX and CARRY are set by their loop."""
