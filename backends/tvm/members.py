"""The statements of one stage at the points of one piece of its group's loop nest."""

from __future__ import annotations

from sparsec.backends.tvm import access, reductions
from sparsec.backends.tvm.demands import Stage
from sparsec.backends.tvm.expressions import compute, converted, evaluate, named, vector
from sparsec.backends.tvm.kernel import Kernel
from sparsec.backends.tvm.nests import Rows
from sparsec.backends.tvm.point import Point
from sparsec.backends.tvm.storage import cell
from sparsec.tile.language import Node, TileOp


def emit_member(
    kernel: Kernel, stage: Stage, points: list[Point], rows: Rows, reduced: list[Stage], kept: set[int]
) -> None:
    """Compute a stage at these points; ``kept`` values are written to their places."""
    node = stage.node
    if node.op is TileOp.STORE:
        for point in points:
            access.store(kernel, node, point)
        return
    if node.op is TileOp.REDUCE:
        reductions.step(kernel, reduced, stage, points, rows)
        return
    if node.op is TileOp.MASK_IF:
        _mask_if(kernel, node, points)
    elif node.op is not TileOp.DOT:
        for point in points:
            _each(kernel, node, point)
    if node.serial in kept:
        for point in points:
            keep(kernel, node, point)


def keep(kernel: Kernel, node: Node, point: Point) -> None:
    """Write a value that has just been computed to its place."""
    known = kernel.recall(node, point)
    assert known is not None, node
    width = point.width_of(node.axes)
    kernel.out.line(f"{kernel.stored[node.serial].at(point)} = {converted(known, node.dtype, cell(node.dtype), width)}")


def _each(kernel: Kernel, node: Node, point: Point) -> None:
    text = compute(kernel, node, point)
    can_be_named = node.dtype != "bool" or point.width_of(node.axes) == 1
    if can_be_named:
        text = named(kernel, node, point, text, _stem(kernel, node))
    kernel.remember(node, point, text)


def _stem(kernel: Kernel, node: Node) -> str:
    return f"{kernel.name(node)}_v" if node.axes else f"{kernel.name(node)}_s"


def _mask_if(kernel: Kernel, node: Node, points: list[Point]) -> None:
    """Values first, then all masks under one branch."""
    condition, mask, x, other = node.args
    held = [kernel.register("masked", k, p.width, cell(node.dtype)) for k, p in enumerate(points)]
    for text, point in zip(held, points, strict=True):
        kernel.out.line(f"{text} = {vector(kernel, x, point)}")
    with kernel.block(f"if {evaluate(kernel, condition, Point())}:"):
        for text, point in zip(held, points, strict=True):
            kernel.out.line(f"{text} = T.Select({vector(kernel, mask, point)}, {text}, {vector(kernel, other, point)})")
    for text, point in zip(held, points, strict=True):
        kernel.remember(node, point, kernel.bind(text, "masked"))
