"""Gradients per token of a delta rule's ladder, all chunks side by side.

With T = (I + A)⁻¹ = I + L, A = tril(K Kᵀ e^{Γ_i − Γ_j}, −1) beta, E the same of Q Kᵀ with its diagonal, F = E T,
K' = e^Γ K, K" = beta e^{Γ_C − Γ} K, G the weights inside the chunk, and from readers dX of X_0 = e^Γ Q − F K', dS of
S = K"ᵀ T V and dP of P = e^{Γ_C} I − K"ᵀ T K':

    dF = G ⊙ scale dO Vᵀ − dX K'ᵀ         dE = dF Tᵀ            dK" = T (V dSᵀ − K' dPᵀ)
    dU = K" dS,  dW = −K" dP             dK' = Tᵀ dW − Fᵀ dX   dV = scale (F ⊙ G)ᵀ dO + Tᵀ dU
    dT = Eᵀ dF + dU Vᵀ + dW K'ᵀ          dA = −Tᵀ dT Tᵀ, of which E's and A's keys and queries have their shares

A log-decay scales all that passes its token: its gradient sums, from its token on, what rows gain and columns lose.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.fenwick import parts
from sparsec.lower.fenwick.back import Back
from sparsec.lower.fenwick.leaf import of_writes
from sparsec.lower.fenwick.parts import Parts
from sparsec.lower.fenwick.rule import Rule
from sparsec.lower.fenwick.rungs import column_of
from sparsec.lower.fenwick.walk import frame
from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk.operands import times
from sparsec.lower.scan.chunk.outputs import visible
from sparsec.lower.scan.chunk.parts import CHUNKS, column_limit, power_of_two
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program


def lower(b: Back) -> Program:
    """Gradients of queries, keys, rates and decays from those; one (chunk, head, batch) per grid point."""
    own, w, rungs = b.own, b.own.writes, b.rungs
    with tile.Builder() as builder:
        f = frame(builder, b)
        _finish(Rule(f), parts.load(f))
        tensors = [rungs.queries, rungs.keys, *of_writes(rungs), *parts.tensors(b), *f.tensors]
        grid = (tile.param(CHUNKS), w.heads, tile.param("B"))
        return own.program(builder, "", tensors, grid)


def _of_keys(at: Rule, solved: Node) -> Node:
    """dA ``[c,n]``, strictly lower, before its decays and rates."""
    f, a = at.f, at.f.axes
    grad = tile.rename(solved, f.at.middle, a.queries)
    left = f.chunk.tile_of(f.b.own.solved, f.at.middle, tile.iota(a.queries))
    once = f.dot(left, solved, f.at.middle, grad)
    return mul(at.after(once), -1.0)


def _finish(at: Rule, p: Parts) -> None:
    """Everything that is no sum over value columns."""
    f, a, b, chunk = at.f, at.f.axes, at.f.b, at.f.chunk
    q, k, beta = f.at.queries(), f.at.keys(), chunk.beta(a.keys)
    other = tile.rename(k, a.keys, a.queries)
    of_seen = visible(b.own, chunk, a, at.after(p.effective), "after")
    of_keys = visible(b.own, chunk, a, _of_keys(at, p.solved), "before")
    passed = add(mul(of_seen, f.dot(q, k, a.dims)), mul(of_keys, f.dot(other, k, a.dims)))
    sums = _of_rows(at, times(of_seen, beta) or of_seen, times(of_keys, beta) or of_keys)
    grad_beta = tile.reduce("sum", passed, a.queries)
    rows = tile.reduce("sum", times(passed, beta) or passed, a.keys)
    change = sub(tile.rename(rows, a.queries, a.keys), times(grad_beta, beta) or grad_beta)
    through: Node | None = None
    if p.whole is not None:
        gains, lifted, ends = sums
        grad_beta, ends = add(grad_beta, ends), times(ends, beta) or ends
        change = add(change, sub(add(tile.rename(gains, a.queries, a.keys), lifted), ends))
        through = tile.reduce("sum", ends, a.keys)
        through = add(through, mul(p.whole, power_of_two(chunk.total()))) if b.own.decays else None
    f.narrow(b.spec.grad_beta, grad_beta)
    if b.own.decays:
        after = sub(tile.reduce("sum", change, a.keys), sub(tile.scan(change, a.keys), change))
        f.narrow(b.spec.grad_decay, after if through is None else add(after, through))


def _of_rows(at: Rule, of_seen: Node, of_keys: Node) -> list[Node]:
    """Gradients of queries ``[c,d]`` and keys ``[n,d]``, stored some columns at a time.

    Returns, summed over d, e^Γ q dX ``[c]``, k e^Γ dK' and k e^{Γ_C − Γ} dK" ``[n]``: what decays gain by them.
    """
    f, a, b, chunk = at.f, at.f.axes, at.f.b, at.f.chunk
    beta, left, size = chunk.beta(a.keys), chunk.left(a.keys), b.own.writes.rows
    since = [power_of_two(chunk.sums(axis)) if b.own.decays else None for axis in (a.queries, a.keys)]
    tiles = -(-a.dims.size // a.columns.size)
    limit = column_limit(size, tiles * a.columns.size)

    def visit(number: Node, *sums: Node) -> Sequence[Node]:
        column = column_of(number, a.columns)
        q, k = f.at.queries(column), f.at.keys(column)
        other = tile.rename(k, a.keys, a.queries)
        grad_q, grad_k = f.dot(of_seen, k, a.keys), f.dot(of_seen, q, a.queries)
        grad_k = f.dot(of_keys, other, a.queries, grad_k)
        grad_k = add(grad_k, tile.rename(f.dot(of_keys, k, a.keys), a.queries, a.keys))
        found = list(sums)
        if b.rungs.outer:
            first, lifted, ending = parts.columns(f, column)
            first, lifted = times(first, since[0]) or first, times(lifted, since[1]) or lifted
            ending = times(ending, left) or ending
            grad_q = add(grad_q, first)
            grad_k = add(add(grad_k, lifted), times(ending, beta) or ending)
            pairs = ((q, first), (k, lifted), (k, ending))
            found = [add(old, _along(*pair, a.columns)) for old, pair in zip(sums, pairs, strict=True)]
        f.wide(b.spec.grad_q, grad_q, column, size, limit)
        f.wide(b.spec.grad_k, grad_k, column, size, limit)
        return found

    sums = [tile.full(0.0, axis) for axis in (a.queries, a.keys, a.keys)] if b.rungs.outer else []
    for number in range(tiles):
        sums = list(visit(tile.const(number), *sums))
    return sums


def _along(x: Node, grad: Node, dims: Axis) -> Node:
    """Σ_d x · grad."""
    return tile.reduce("sum", mul(tile.cast(x, "float32"), grad), dims)
