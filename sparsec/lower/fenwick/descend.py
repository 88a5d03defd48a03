"""Gradients of blocks from those of the blocks one level up, and from what readers ask of them.

    dS_left  = P_rightᵀ dS + asked          dS_right = dS
    dP_left  = P_rightᵀ dP + asked          dP_right = dS S_leftᵀ + dP P_leftᵀ

No block above the highest level has a gradient, nor has one that is not complete.
"""

from __future__ import annotations

from sparsec.lower.fenwick.back import Back
from sparsec.lower.fenwick.climb import Pair, grid, pair
from sparsec.lower.fenwick.leaf import store
from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk.parts import power, power_of_two
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor


def lower_states(b: Back, level: int) -> Program:
    """dS of ``level``; one (pair of blocks and tile of columns, head, batch) per grid point."""
    own, rungs = b.own, b.rungs
    with tile.Builder() as builder:
        at = pair(builder, rungs, level, own.writes.cols)
        index, made = (tile.iota(at.dims), at.column), b.grad_states(level)
        asked = _asked(at, b.reads, index)
        tensors = [b.reads, made]
        if level == rungs.outer - 1:
            left, right = asked, tile.full(0.0, at.dims, at.columns)
        else:
            above = b.grad_states(level + 1)
            right = _above(at, above, *index)
            left = add(at.carried(at.right, right, transposed=True), asked)
            tensors += [above] + [rungs.moves(level)] * own.delta + [rungs.fades(level)] * rungs.fading
        if b.learns_decay:
            _keep(b, at, index, right, level)
            tensors += [b.kept] + [rungs.states(level), rungs.fades(level)] * (level < rungs.outer - 1)
        _store(at, made, index, left, right)
        return own.program(builder, f"down{level}", tensors, grid(at, level + 1))


def lower_moves(b: Back, level: int) -> Program:
    """dP of ``level`` of a delta rule."""
    own, rungs = b.own, b.rungs
    with tile.Builder() as builder:
        at = pair(builder, rungs, level, own.writes.rows)
        values = builder.axis("v", power(own.writes.cols))
        index, made = (tile.iota(at.dims), at.column), b.grad_moves(level)
        asked = _asked(at, b.passes, index)
        tensors = [b.passes, made]
        if level == rungs.outer - 1:
            left, right = asked, tile.full(0.0, at.dims, at.columns)
        else:
            left = add(at.moved(at.right, _above(at, b.grad_moves(level + 1), *index), transposed=True), asked)
            right = _outer(at, b.grad_states(level + 1), rungs.read_states, values, None)
            right = _outer(at, b.grad_moves(level + 1), rungs.read_moves, at.rows, right)
            tensors += [b.grad_moves(level + 1), b.grad_states(level + 1), *rungs.carried(), rungs.moves(level)]
        _store(at, made, index, left, right)
        return own.program(builder, f"down_moves{level}", tensors, grid(at, level + 1))


def _above(at: Pair, tensor: Tensor, *index: Node) -> Node:
    """The gradient of the block that two make, 0 where it is not complete."""
    return at.load(tensor, at.number, *index, count=at.rungs.complete(at.level + 1))


def _asked(at: Pair, tensor: Tensor, index: tuple[Node, ...]) -> Node:
    """What readers ask of the left block, in fp32."""
    found = at.load(tensor, sub(_middle(at), 1), *index, count=tile.param(str(tensor.shape[2])))
    return tile.cast(found, "float32")


def _middle(at: Pair) -> Node:
    """The chunk that begins the right block."""
    return mul(at.right, 1 << at.level)


def _store(at: Pair, tensor: Tensor, index: tuple[Node, ...], left: Node, right: Node) -> None:
    for block, value in ((at.left, left), (at.right, right)):
        store(tensor, (at.batch, at.head, block, *index), value)


def _outer(at: Pair, above: Tensor, left: Tensor, over: Axis, acc: Node | None) -> Node:
    """A gradient times the transposed left block, which others read, ``[d,e]``, e its rows."""
    own, grad = at.rungs.own, _above(at, above, tile.iota(at.dims), tile.iota(over))
    last = sub(_middle(at), 1)
    other = at.load(left, last, at.column, tile.iota(over), count=tile.param(str(left.shape[2])))
    dtype = own.writes.k.dtype
    return tile.dot(tile.cast(grad, dtype), tile.cast(other, dtype), over, acc, own.schedule.precision)


def _keep(b: Back, at: Pair, index: tuple[Node, ...], above: Node, level: int) -> None:
    """A share of the gradient of the right block's decay: <dS, P_right S_left>."""
    found: Node = tile.const(0.0)
    if level < b.rungs.outer - 1:
        found = mul(above, at.load(b.rungs.states(level), at.left, *index))
        while found.axes:
            found = tile.reduce("sum", found, found.axes[-1])
        found = mul(found, power_of_two(at.load(b.rungs.fades(level), at.right)))
    part = tile.apply(Fn.TRUNCMOD, tile.program_id(0), at.tiles)
    place = (at.batch, at.head, part, _middle(at))
    tile.store(b.kept, *place, value=found, bounds={3: tile.param(str(b.kept.shape[3]))})
