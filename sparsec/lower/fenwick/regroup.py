"""The gradient of a chunk's own state from that of the group that it is in, where transitions are numbers.

A block that is the first half of another has the other's gradient, faded by the second half, and what its readers ask;
one that is the second half has the other's as it is.
"""

from __future__ import annotations

from sparsec.lower.fenwick.back import Back
from sparsec.lower.fenwick.frame import Frame
from sparsec.lower.fenwick.rungs import bit, edges, shifted
from sparsec.lower.scalars import add, least, mul, sub
from sparsec.lower.scan.chunk.parts import CHUNKS, Chunk, power_of_two
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor


def own_gradient(f: Frame, column: Node) -> tuple[Node, Node]:
    """dS of the chunk ``[d,e]`` in fp32, and a share of what a second half keeps, if the chunk begins one."""
    b, first = f.b, f.b.rungs.first
    index = (tile.iota(f.axes.dims), column)
    grad, kept = tile.full(0.0, f.axes.dims, f.axes.columns), tile.const(0.0)
    if first < b.rungs.outer:
        limits: dict[int, tile.Value] = {2: b.rungs.complete(first)}
        tensor, place = b.grad_states(first), shifted(f.chunk.number, first)
        grad = tile.load(tensor, *_head(f), place, *index, bounds=limits | edges(tensor, index))
    for level in range(first - 1, -1, -1):
        if b.learns_decay:
            kept = add(kept, _kept(f, level, index, grad))
        grad = _down(f, level, index, grad)
    return grad, kept


def tensors(b: Back) -> list[Tensor]:
    """What it reads."""
    rungs = b.rungs
    return [b.reads] + ([b.grad_states(rungs.first)] if rungs.first < rungs.outer else [])


def _head(f: Frame) -> tuple[Node, Node]:
    return f.chunk.batch, f.chunk.head


def _down(f: Frame, level: int, index: tuple[Node, ...], grad: Node) -> Node:
    """The gradient of the chunk's block of a level from that of the block above."""
    b, second = f.b, bit(f.chunk.number, level)
    middle = mul(add(shifted(f.chunk.number, level), 1), 1 << level)
    bounds: dict[int, tile.Value] = {2: tile.apply(Fn.WHERE, tile.apply(Fn.EQ, second, 1), 0, tile.param(CHUNKS))}
    asked = tile.load(b.reads, *_head(f), sub(middle, 1), *index, bounds=bounds | edges(b.reads, index))
    if b.rungs.fading:
        fade = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, second, 1), 0.0, _fade(f, middle, level))
        grad = mul(grad, power_of_two(fade))
    return add(grad, tile.cast(asked, "float32"))


def _kept(f: Frame, level: int, index: tuple[Node, ...], grad: Node) -> Node:
    """<dS, P_right S_left> of the block above, where the chunk is the first of its right half; 0 elsewhere."""
    tensor, number = f.b.rungs.read_states, f.chunk.number
    begins = tile.apply(Fn.EQ, tile.apply(Fn.AND, number, (2 << level) - 1), 1 << level)
    bounds: dict[int, tile.Value] = {2: tile.apply(Fn.WHERE, begins, tile.param(CHUNKS), 0)}
    place = tile.apply(Fn.MAXIMUM, sub(number, 1), 0)
    state = tile.load(tensor, *_head(f), place, *index, bounds=bounds | edges(tensor, index))
    found = mul(grad, tile.cast(state, "float32"))
    while found.axes:
        found = tile.reduce("sum", found, found.axes[-1])
    return mul(found, power_of_two(_fade(f, number, level)))


def _fade(f: Frame, first: Node, level: int) -> Node:
    """The decay over the block of a level that begins at a chunk; of chunks past the last, the last one's."""
    last = sub(tile.param(CHUNKS), 1)
    found: Node | None = None
    for n in range(1 << level):
        total = Chunk(f.b.own, *_head(f), least(add(first, n), last)).total()
        found = total if found is None else add(found, total)
    assert found is not None
    return found
