"""Work that goes element by element along an axis: running sums and running top-k."""

from __future__ import annotations

from sparsec.backends.tvm.demands import Stage
from sparsec.backends.tvm.expressions import vector
from sparsec.backends.tvm.kernel import Kernel
from sparsec.backends.tvm.nests import columns_of, each_point, rows_of
from sparsec.backends.tvm.point import Point
from sparsec.backends.tvm.reductions import neutral
from sparsec.backends.tvm.storage import Stored, cell, spread
from sparsec.backends.tvm.tiles import plan_each
from sparsec.tile.language import Axis


def emit_scan(kernel: Kernel, stage: Stage) -> None:
    """An inclusive running sum along an axis that is not the lane axis."""
    node, (over,) = stage.node, stage.node.attrs
    assert isinstance(over, Axis)
    place = kernel.give_place(node, stage.lane)
    dtype = cell(node.dtype)
    tile = plan_each(tuple(a for a in node.axes if a != over), stage.lane, kernel.found.lanes)
    with rows_of(kernel, tile) as rows:
        for points in columns_of(kernel, tile, rows):
            sums = [kernel.register("running", k, p.width, dtype) for k, p in enumerate(points)]
            for text, point in zip(sums, points, strict=True):
                kernel.out.line(f"{text} = {spread(neutral('sum', dtype), point.width)}")
            with kernel.loop(over.size, "s") as s:
                for text, point in zip(sums, points, strict=True):
                    kernel.out.line(f"{text} = {text} + {vector(kernel, node.args[0], point.at(over, s))}")
                    kernel.out.line(f"{place.at(point.at(over, s))} = {text}")


def emit_top_insert(kernel: Kernel, stage: Stage) -> None:
    """Insert new keys into sorted lists; a candidate that beats no list's last key costs one comparison."""
    node = stage.node
    slots, candidates = node.attrs
    assert isinstance(slots, Axis) and isinstance(candidates, Axis)
    if node.serial not in kernel.stored:
        place = kernel.give_place(node, stage.lane)
        for point in each_point(kernel, node.axes, stage.lane):
            kernel.out.line(f"{place.at(point)} = {vector(kernel, node.args[0], point)}")
    place = kernel.stored[node.serial]
    tile = plan_each(tuple(a for a in node.axes if a != slots), stage.lane, kernel.found.lanes)
    with rows_of(kernel, tile) as rows:
        for points in columns_of(kernel, tile, rows):
            for point in points:
                with kernel.loop(candidates.size, "j") as j:
                    key = kernel.bind(vector(kernel, node.args[1], point.at(candidates, j)), "key")
                    _insert(kernel, place, point, slots, key)


def _insert(kernel: Kernel, place: Stored, point: Point, slots: Axis, key: str) -> None:
    last = place.at(point.at(slots, str(slots.size - 1)))
    if point.width == 1:
        with kernel.block(f"if {key} > {last}:"):
            _shift_in(kernel, place, point, slots, key)
        return
    beaten = f'T.call_llvm_pure_intrin("bool", "llvm.vector.reduce.or.v{point.width}i1", {key} > {last})'
    with kernel.block(f"if {beaten}:"):
        moving = kernel.register("moving", 0, point.width, "int64")
        kernel.out.line(f"{moving} = {key}")
        with kernel.loop(slots.size, "s") as s:
            kept = place.at(point.at(slots, s))
            old = kernel.bind(kept, "old")
            new = kernel.bind(moving, "new")
            kernel.out.line(f"{kept} = T.max({old}, {new})")
            kernel.out.line(f"{moving} = T.min({old}, {new})")


def _shift_in(kernel: Kernel, place: Stored, point: Point, slots: Axis, key: str) -> None:
    """Move smaller keys down and put the new one into the hole."""
    hole = kernel.register("hole", 0, 1, "int32")
    at, before = (place.at(point.at(slots, text)) for text in (hole, f"{hole} - 1"))
    kernel.out.line(f"{hole} = {slots.size - 1}")
    with kernel.block(f"while T.if_then_else({hole} > 0, {before} < {key}, False):"):
        kernel.out.line(f"{at} = {before}")
        kernel.out.line(f"{hole} = {hole} - 1")
    kernel.out.line(f"{at} = {key}")
