"""What Triton cannot express, said before anything is printed."""

from __future__ import annotations

import math

from sparsec.backends.triton.names import RESERVED, argument
from sparsec.tile.language import Axis, Node, Program, TileOp
from sparsec.tile.regions import regions
from sparsec.tile.schedule import ScheduleError
from sparsec.tile.verify import verify

_LARGEST_TILE = 1 << 20
_SMALLEST_DOT = 16


def check(program: Program) -> None:
    """Raise ScheduleError with one sentence where a program cannot become a Triton kernel."""
    verify(program)
    for name in (program.name, *(argument(t.name) for t in program.tensors), *(name for name, _ in program.params)):
        if name in RESERVED or not name.isidentifier():
            raise ScheduleError(f"{program.name}: an argument or kernel cannot be named {name!r} in Triton; rename it")
    for node in (n for nodes in regions(program).nodes.values() for n in nodes):
        if sentence := refusal(node):
            raise ScheduleError(f"{program.name}: {node!r}: {sentence}")


def refusal(node: Node) -> str | None:
    """Why Triton cannot compute a node; None where it can."""
    for axis in node.axes:
        if axis.size & (axis.size - 1):
            return f"axis {axis.name} has {axis.size} elements; Triton's tiles are powers of two, so split the axis"
    if (size := math.prod(axis.size for axis in node.axes)) > _LARGEST_TILE:
        return f"a tile of {size} elements; Triton allows {_LARGEST_TILE}, so use smaller axes"
    if node.op is TileOp.DOT:
        return _dot(node)
    return _top_insert(node) if node.op is TileOp.TOP_INSERT else None


def _dot(node: Node) -> str | None:
    a, b = node.args[:2]
    if min(len(a.axes), len(b.axes)) == 1:
        return None
    if len(a.axes) != 2 or len(b.axes) != 2:
        return f"multiplies tiles of {len(a.axes)} and {len(b.axes)} axes; tensor cores take two each"
    for axis in {*a.axes, *b.axes}:
        if axis.size < _SMALLEST_DOT:
            return f"axis {axis.name} of a matrix product has {axis.size} elements; tensor cores need {_SMALLEST_DOT}"
    return None


def _top_insert(node: Node) -> str | None:
    slots, candidates = node.attrs
    keys, new = node.args
    assert isinstance(slots, Axis)
    if set(keys.axes) - {slots} != set(new.axes) - {candidates}:
        return "slots and candidates must have the same other axes"
    return None
