"""Reductions: running accumulators over row axes, one vector per row over the lane axis, added up at the row's end."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.backends.tvm.demands import Stage
from sparsec.backends.tvm.expressions import converted, vector
from sparsec.backends.tvm.functions import Vector, number
from sparsec.backends.tvm.kernel import Kernel
from sparsec.backends.tvm.nests import Rows, each_point
from sparsec.backends.tvm.point import Point
from sparsec.backends.tvm.storage import cell, spread, typed
from sparsec.tile.language import Axis, Node

LOWEST = {"float32": float("-inf"), "int32": -(2**31), "int64": -(2**63)}
HIGHEST = {"float32": float("inf"), "int32": 2**31 - 1, "int64": 2**63 - 1}


def neutral(kind: str, dtype: str) -> str:
    """The number that changes nothing."""
    value = {"sum": 0, "max": LOWEST[dtype], "min": HIGHEST[dtype]}[kind]
    return number(value, dtype)


def combine(kernel: Kernel, kind: str, dtype: str, a: str, b: str, width: int) -> str:
    """The sum, maximum or minimum of two texts; ``a`` is read twice."""
    if kind == "sum":
        return f"{a} + {b}"
    return f"T.{kind}({a}, {b})" if dtype != "float32" else Vector(kernel.bind, width).extreme(kind, a, b)


def over_lanes(stage: Stage) -> bool:
    """Whether a reduction adds up the lanes of a vector."""
    return stage.lane is not None and stage.node.attrs[1] == stage.lane


def kind_of(node: Node) -> tuple[str, str]:
    """The kind of a reduction and the dtype it works in."""
    return str(node.attrs[0]), cell(node.dtype)


def begin(kernel: Kernel, stage: Stage) -> None:
    """Give a reduction its place, and start it if it runs over rows."""
    lane = None if over_lanes(stage) else stage.lane
    place = kernel.give_place(stage.node, lane)
    if over_lanes(stage):
        return
    kind, dtype = kind_of(stage.node)
    for point in each_point(kernel, stage.node.axes, lane):
        kernel.out.line(f"{place.at(point)} = {spread(neutral(kind, dtype), point.width_of(stage.node.axes))}")


def begin_rows(kernel: Kernel, stages: Sequence[Stage], rows: Rows) -> None:
    """Start the vector accumulators of these rows."""
    for number_, stage in enumerate(s for s in stages if over_lanes(s)):
        kind, dtype = kind_of(stage.node)
        width = _width(kernel, stage.lane)
        for k in range(len(rows)):
            kernel.out.line(f"{_partial(kernel, number_, k, width, dtype)} = {spread(neutral(kind, dtype), width)}")


def step(kernel: Kernel, stages: Sequence[Stage], stage: Stage, points: list[Point], rows: Rows) -> None:
    """Take in the elements of one piece."""
    kind, dtype = kind_of(stage.node)
    lanes = [s for s in stages if over_lanes(s)]
    for k, point in enumerate(points):
        value = converted(vector(kernel, stage.node.args[0], point), stage.node.args[0].dtype, dtype, point.width)
        if over_lanes(stage):
            place = _partial(kernel, lanes.index(stage), k * len(rows) // len(points), point.width, dtype)
        else:
            place = kernel.stored[stage.node.serial].at(point)
        kernel.out.line(f"{place} = {combine(kernel, kind, dtype, place, value, point.width)}")


def end_rows(kernel: Kernel, stages: Sequence[Stage], rows: Rows) -> None:
    """Add up the lanes of these rows."""
    for number_, stage in enumerate(s for s in stages if over_lanes(s)):
        kind, dtype = kind_of(stage.node)
        width = _width(kernel, stage.lane)
        for k, row in enumerate(rows):
            total = across(kernel, kind, dtype, _partial(kernel, number_, k, width, dtype), width)
            kernel.out.line(f"{kernel.stored[stage.node.serial].at(Point(row))} = {total}")


def across(kernel: Kernel, kind: str, dtype: str, text: str, width: int) -> str:
    """All lanes of a vector combined, by halves."""
    whole = kernel.bind(text)
    while width > 2:
        width //= 2
        low, high = (kernel.bind(f'T.vector{half}("{typed(dtype, width)}", {whole})') for half in ("low", "high"))
        whole = kernel.bind(combine(kernel, kind, dtype, low, high, width))
    a, b = (kernel.bind(f"T.Shuffle([{whole}], [{k}])") for k in (0, 1))
    return combine(kernel, kind, dtype, a, b, 1)


def _width(kernel: Kernel, lane: Axis | None) -> int:
    assert lane is not None
    return kernel.found.lanes.width(lane)


def _partial(kernel: Kernel, number_: int, row: int, width: int, dtype: str) -> str:
    """The accumulator of a row."""
    return kernel.register(f"partial{number_}", row, width, dtype)
