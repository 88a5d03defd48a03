"""Gradients per token where transitions are numbers, all chunks side by side.

With E = tril(Q Kᵀ e^{Γ_i − Γ_j}), G the weights inside the chunk, dS of the chunk's own block, S_j those that it reads,
f_j the decay since they ended, N = scale dO Vᵀ and X = N ⊙ G ⊙ e^{Γ_i − Γ_j}, lower with the diagonal:

    dQ = Σ_j scale gate_j f_j e^Γ dO S_jᵀ + X beta K           dgate_j = scale f_j e^Γ q·(dO S_jᵀ), inside Σ N E beta
    dK = beta (e^{Γ_C − Γ} V dSᵀ + Xᵀ Q)                       dV = beta (e^{Γ_C − Γ} K dS + scale (E ⊙ G)ᵀ dO)
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.fenwick import far, regroup
from sparsec.lower.fenwick.back import Back
from sparsec.lower.fenwick.frame import Frame
from sparsec.lower.fenwick.leaf import of_writes
from sparsec.lower.fenwick.outputs import Reader
from sparsec.lower.fenwick.regroup import own_gradient
from sparsec.lower.fenwick.rungs import edges
from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk.operands import times
from sparsec.lower.scan.chunk.outputs import visible
from sparsec.lower.scan.chunk.parts import CHUNKS, Chunk
from sparsec.lower.scan.chunk.state import axes
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program


def lower(b: Back) -> Program:
    """One (chunk, head, batch) per grid point."""
    own, w, rungs = b.own, b.own.writes, b.rungs
    with tile.Builder() as builder:
        chunk = Chunk(own, tile.program_id(2), tile.program_id(1), tile.program_id(0))
        a = axes(builder, own, "cnde")
        f = Frame(b, Reader(rungs, chunk, a, builder.axis("f", a.dims.size), builder.axis("t", own.chunk)))
        among, far_k = _columns(f)
        far_q, gains = _far(f)
        _finish(f, among, far_k, far_q, gains)
        tensors = [rungs.queries, rungs.keys, rungs.values, rungs.gate, b.grad_out, *of_writes(rungs)]
        tensors += [*regroup.tensors(b), *rungs.carried(), *far.tensors(b)] if rungs.outer else []
        grid = (tile.param(CHUNKS), w.heads, tile.param("B"))
        return own.program(builder, "", [*tensors, *f.tensors], grid)


def _columns(f: Frame) -> tuple[Node, Node]:
    """dO Vᵀ ``[c,n]`` and V dSᵀ ``[n,d]``; dV is stored on the way."""
    b, a, chunk = f.b, f.axes, f.chunk
    seen = mul(f.at.seen(), f.b.rungs.among(chunk, a.queries, a.keys))
    weights, left, beta = tile.cast(mul(seen, b.scale), b.own.writes.k.dtype), chunk.left(a.keys), chunk.beta(a.keys)
    keys = f.at.keys()

    def visit(number: Node, among: Node, far: Node, kept: Node) -> Sequence[Node]:
        column, limit = f.column(number)
        do, v = f.grad_out(column, limit), f.values(column, limit)
        found = [f.dot(do, v, a.columns, among), far, kept]
        near: Node | None = None
        if b.rungs.outer:
            wide, share = own_gradient(f, column)
            grad = tile.cast(wide, b.own.writes.k.dtype)
            found[1:] = [f.dot(v, grad, a.columns, far), add(kept, share)]
            near = f.dot(keys, grad, a.dims)
            near = times(near, left, beta) or near
        f.wide(b.spec.grad_v, f.dot(weights, do, a.queries, near), column, b.own.writes.cols, limit)
        return found

    zeros = [tile.full(0.0, a.queries, a.keys), tile.full(0.0, a.keys, a.dims), tile.const(0.0)]
    among, far, kept = tile.loop(0, b.own.tiles, 1, zeros, visit)
    if b.rungs.outer and b.learns_decay:
        _keep(f, kept)
    return among, far


def _keep(f: Frame, kept: Node) -> None:
    """What a second half inside a group keeps; the programs of larger blocks store theirs."""
    b, chunk = f.b, f.chunk
    inside = tile.apply(Fn.AND, chunk.number, (1 << b.rungs.first) - 1)
    limit = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, inside, 0), 0, tile.param(CHUNKS))
    for part in range(b.tiles):
        value = kept if part == 0 else tile.const(0.0)
        tile.store(b.kept, chunk.batch, chunk.head, part, chunk.number, value=value, bounds={3: limit})
    f.tensors.append(b.kept)


def _far(f: Frame) -> tuple[Node, Node]:
    """What another program found: dO's share through the blocks before ``[c,d]``, and what its rows gain ``[c]``."""
    b, a, chunk = f.b, f.axes, f.chunk
    if not b.rungs.outer:
        return tile.full(0.0, a.queries, a.dims), tile.full(0.0, a.queries)
    row, tokens = tile.iota(a.dims), chunk.token(a.queries)
    pull = tile.load(b.pull, chunk.batch, chunk.head, tokens, row, bounds=edges(b.pull, [row]))
    gains = tile.full(0.0, a.queries)
    if b.learns_decay:
        gains = tile.load(b.gained, chunk.batch, chunk.head, tokens)
    return tile.cast(pull, "float32"), gains


def _finish(f: Frame, among: Node, far_k: Node, far_q: Node, gains: Node) -> None:
    """Everything that is no sum over value columns."""
    b, a, chunk, own, spec = f.b, f.axes, f.chunk, f.b.own, f.b.spec
    q, k, beta, left = f.at.queries(), f.at.keys(), chunk.beta(a.keys), chunk.left(a.keys)
    x = visible(own, chunk, a, mul(among, b.scale), "after")
    scores = f.dot(q, k, a.dims)
    passed = mul(x, scores)
    f.gates_among(times(passed, beta) or passed)
    weights = b.rungs.among(chunk, a.queries, a.keys)
    x, passed = mul(x, weights), mul(passed, weights)
    weighted, far_k = times(x, beta) or x, times(far_k, left) or far_k
    row, limit = tile.iota(a.dims), f.at.row_limit
    f.wide(spec.grad_q, f.dot(weighted, k, a.keys, far_q), row, own.writes.rows, limit)
    f.wide(spec.grad_k, f.dot(weighted, q, a.queries, times(far_k, beta) or far_k), row, own.writes.rows, limit)
    ends = tile.reduce("sum", mul(tile.cast(k, "float32"), far_k), a.dims)
    grad_beta = add(tile.reduce("sum", passed, a.queries), ends)
    f.narrow(spec.grad_beta, grad_beta)
    if not own.decays or spec.grad_decay is None:
        return
    rows = tile.reduce("sum", times(passed, beta) or passed, a.keys)
    change = sub(tile.rename(add(gains, rows), a.queries, a.keys), times(grad_beta, beta) or grad_beta)
    after = sub(tile.reduce("sum", change, a.keys), sub(tile.scan(change, a.keys), change))
    whole = add(after, tile.reduce("sum", times(ends, beta) or ends, a.keys))
    if not b.rungs.outer:
        f.narrow(spec.grad_decay, whole)
        return
    tile.store(b.among, chunk.batch, chunk.head, chunk.token(a.keys), value=whole)
    f.tensors.append(b.among)
