"""The two walks of a delta rule's queries over the blocks that their chunk reads.

X_{j+1} = X_j P_j from the nearest block back; dX_j = scale gate_j ⊙ dO S_jᵀ + dX_{j+1} P_jᵀ from the farthest on
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.fenwick.back import Back
from sparsec.lower.fenwick.far import asked
from sparsec.lower.fenwick.frame import Frame
from sparsec.lower.fenwick.leaf import of_writes
from sparsec.lower.fenwick.outputs import Reader
from sparsec.lower.fenwick.rungs import edges
from sparsec.lower.fenwick.visits import farthest_first, nearest_first, unread
from sparsec.lower.scalars import add, mul
from sparsec.lower.scan.chunk.parts import CHUNKS, Chunk
from sparsec.lower.scan.chunk.state import axes
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor


def frame(builder: tile.Builder, b: Back) -> Frame:
    """One chunk of one head per grid point."""
    chunk = Chunk(b.own, tile.program_id(2), tile.program_id(1), tile.program_id(0))
    a = axes(builder, b.own, "cnde")
    return Frame(b, Reader(b.rungs, chunk, a, builder.axis("f", a.dims.size), builder.axis("t", b.own.chunk)))


def lower_out(b: Back) -> Program:
    """X of every level; one (chunk, head, batch) per grid point."""
    own, rungs = b.own, b.rungs
    with tile.Builder() as builder:
        f = frame(builder, b)

        def read(here: Node, held: Node) -> Sequence[Node]:
            _keep(f, b.walks, here, held)
            return [f.at.next(held, here)]

        nearest_first(rungs, f.chunk, [f.at.first(f.at.effective())], read)
        tensors = [rungs.queries, rungs.keys, *of_writes(rungs), rungs.read_moves, b.walks]
        return own.program(builder, "walk", tensors, (tile.param(CHUNKS), own.writes.heads, tile.param("B")))


def lower_back(b: Back) -> Program:
    """The gradients of X, and of the weights outside the chunk."""
    own, rungs = b.own, b.rungs
    with tile.Builder() as builder:
        f = frame(builder, b)
        a = f.axes
        answered = asked(f)

        def read(here: Node, grad: Node) -> Sequence[Node]:
            _keep(f, b.pulls, here, grad)
            answer = mul(answered(here), b.scale)
            f.gate(
                add(here, rungs.inner),
                tile.reduce("sum", mul(tile.cast(_kept(f, here), "float32"), answer), a.dims),
            )
            weight = rungs.weight(f.chunk, a.queries, add(here, rungs.inner))
            return [add(_pulled(f, grad, here), mul(answer, weight))]

        (grad,) = farthest_first(rungs, f.chunk, [tile.full(0.0, a.queries, a.dims)], read)
        unread(rungs, f.chunk, lambda here: f.gate(add(here, rungs.inner), tile.full(0.0, a.queries)))
        row = tile.iota(a.dims)
        place = (f.chunk.batch, f.chunk.head, f.chunk.token(a.queries), row)
        tile.store(b.pull, *place, value=tile.cast(grad, b.pull.dtype), bounds=edges(b.pull, [row]))
        tensors = [b.grad_out, rungs.gate, rungs.read_states, rungs.read_moves, b.walks, b.pulls, b.pull, *f.tensors]
        return own.program(builder, "pull", tensors, (tile.param(CHUNKS), own.writes.heads, tile.param("B")))


def _place(f: Frame, level: Node) -> tuple[Node, ...]:
    return f.chunk.batch, f.chunk.head, level, f.chunk.token(f.axes.queries), tile.iota(f.axes.dims)


def _keep(f: Frame, tensor: Tensor, level: Node, value: Node) -> None:
    place = _place(f, level)
    tile.store(tensor, *place, value=tile.cast(value, tensor.dtype), bounds=edges(tensor, place[4:], 4))


def _kept(f: Frame, level: Node) -> Node:
    place = _place(f, level)
    return tile.load(f.b.walks, *place, bounds=edges(f.b.walks, place[4:], 4))


def _pulled(f: Frame, grad: Node, level: Node) -> Node:
    """dX P_jᵀ ``[c,d]``."""
    return f.dot(tile.rename(grad, f.axes.dims, f.at.other), f.at.move(level, f.axes.dims, f.at.other), f.at.other)
