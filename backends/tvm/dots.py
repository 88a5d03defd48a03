"""Dots: a register tile of accumulators; vectors lie along the result's lanes or along the summed axis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sparsec.backends.tvm.cost import access, bounds, indices, slope
from sparsec.backends.tvm.expressions import evaluate, vector
from sparsec.backends.tvm.kernel import Kernel
from sparsec.backends.tvm.nests import columns_of
from sparsec.backends.tvm.point import Point
from sparsec.backends.tvm.reductions import across
from sparsec.backends.tvm.storage import spread
from sparsec.backends.tvm.text import grouped, plus, times
from sparsec.backends.tvm.tiles import DotPlan, plan_each
from sparsec.backends.tvm.transposes import transposed_sum
from sparsec.tile.language import Node, TileOp

ZERO = "T.float32(0.0)"


@dataclass(slots=True)
class Edges:
    """What bounds mean for a dot whose operands are loads that give 0 outside.

    Attributes:
        limit: how many steps of the summed axis lie inside; None if all do.
        rows: (index, bound) that a row or column of the result must satisfy, or it is 0.
        pairs: the bounds dealt with by ``limit``, and those dealt with by ``rows``.
    """

    limit: str | None = None
    rows: list[tuple[Node, Node]] = field(default_factory=list)
    trusted: set[tuple[int, int]] = field(default_factory=set)
    clamped: set[tuple[int, int]] = field(default_factory=set)


def edges(kernel: Kernel, node: Node, plan: DotPlan) -> Edges:
    """Cut the sum short instead of checking every element; clear rows afterwards instead of within."""
    found, over = Edges(), plan.over
    limits = []
    for operand in dict.fromkeys((plan.vector, plan.other)):
        if operand.op is not TileOp.LOAD or operand.serial in kernel.stored or access(operand).other != 0.0:
            continue
        for d, bound in bounds(operand).items():
            index = indices(operand)[d]
            if index.axes == (over,) and slope(index, over) == 1 and not plan.inner:
                first = evaluate(kernel, index, Point({over: "0"}))
                limits.append(f"{grouped(evaluate(kernel, bound, Point()))} - {grouped(first)}")
                found.trusted.add((operand.serial, d))
            elif over not in index.axes and len(node.args) == 2 and (plan.inner or operand is plan.other):
                found.rows.append((index, bound))
                found.clamped.add((operand.serial, d))
    if limits:
        shortest = str(over.size)
        for limit in limits:
            shortest = f"T.min({shortest}, {limit})"
        found.limit = kernel.bind(shortest, "steps")
    return found


@contextmanager
def _assuming(kernel: Kernel, found: Edges) -> Iterator[None]:
    kernel.trusted |= found.trusted
    kernel.clamped |= found.clamped
    yield
    kernel.trusted -= found.trusted
    kernel.clamped -= found.clamped


def products(kernel: Kernel, node: Node, plan: DotPlan, found: Edges, points: list[Point]) -> None:
    """Compute a dot at the points of one piece and name the results."""
    if plan.inner:
        for point in points:
            _finish(kernel, node, found, point, _inner(kernel, node, plan, found, point))
        return
    sums = [kernel.register("acc", k, point.width) for k, point in enumerate(points)]
    for text, point in zip(sums, points, strict=True):
        kernel.out.line(f"{text} = {_start(kernel, node, point)}")
    with _assuming(kernel, found):
        _outer(kernel, plan, found, points, sums)
    for text, point in zip(sums, points, strict=True):
        _finish(kernel, node, found, point, text)


def _start(kernel: Kernel, node: Node, point: Point) -> str:
    return vector(kernel, node.args[2], point) if len(node.args) > 2 else spread(ZERO, point.width)


def _finish(kernel: Kernel, node: Node, found: Edges, point: Point, text: str) -> None:
    """Name a result, cleared where its row lies outside."""
    for index, bound in found.rows:
        inside = f"{grouped(vector(kernel, index, point))} < {spread(evaluate(kernel, bound, Point()), point.width)}"
        text = f"T.Select({inside}, {text}, {spread(ZERO, point.width)})"
    kernel.remember(node, point, kernel.bind(text, "dot"))


def _outer(kernel: Kernel, plan: DotPlan, found: Edges, points: list[Point], sums: list[str]) -> None:
    """acc[row, column] += other[row, k] * vector[k, column], for all k."""
    unroll = kernel.schedule.unroll if found.limit is None and plan.over.size % kernel.schedule.unroll == 0 else 1
    extent: int | str = plan.over.size // unroll if found.limit is None else found.limit
    with kernel.loop(extent, "k") as k:
        for u in range(unroll):
            known: dict[tuple[str, ...], str] = {}
            for total, point in zip(sums, points, strict=True):
                at = point.at(plan.over, plus(times(k, unroll), str(u)))
                x = _once(kernel, known, "x", plan.vector, at)
                y = _once(kernel, known, "y", plan.other, at)
                kernel.out.line(f"{total} = {total} + {y} * {x}")


def _once(kernel: Kernel, known: dict[tuple[str, ...], str], stem: str, operand: Node, point: Point) -> str:
    """An operand at a point, named the first time."""
    key = (stem, *point.key(operand.axes))
    if key not in known:
        known[key] = kernel.bind(vector(kernel, operand, point), stem)
    return known[key]


def _inner(kernel: Kernel, node: Node, plan: DotPlan, found: Edges, point: Point) -> str:
    """The sums over vectors along the summed axis: one per lane of the result, then transposed and added up."""
    over, width = plan.over, kernel.found.lanes.width(plan.over)
    sums = [kernel.register("acc", j, width) for j in range(point.width)]
    for text in sums:
        kernel.out.line(f"{text} = {spread(ZERO, width)}")
    with _assuming(kernel, found):
        for points in columns_of(kernel, plan_each((over,), over, kernel.found.lanes), [dict(point.rows)]):
            for row in points:
                factor = kernel.bind(vector(kernel, plan.other, row), "y")
                for j, text in enumerate(sums):
                    at = row if point.lane is None else row.at(point.lane, plus(point.start, str(j)))
                    kernel.out.line(f"{text} = {text} + {factor} * {vector(kernel, plan.vector, at)}")
    if point.width == 1:
        total = across(kernel, "sum", "float32", sums[0], width)
    else:
        total = transposed_sum(kernel, sums, width)
    return f"{total} + {_start(kernel, node, point)}" if len(node.args) > 2 else total
