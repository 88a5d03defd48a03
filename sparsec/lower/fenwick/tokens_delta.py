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
from dataclasses import dataclass

from sparsec.lower.fenwick import parts
from sparsec.lower.fenwick.back import Back
from sparsec.lower.fenwick.frame import Frame
from sparsec.lower.fenwick.leaf import of_writes
from sparsec.lower.fenwick.parts import Parts
from sparsec.lower.fenwick.rungs import column_of, edges
from sparsec.lower.fenwick.walk import frame
from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk_outputs import visible
from sparsec.lower.scan.chunk_parts import CHUNKS, column_limit, power_of_two, times
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program


def lower_values(b: Back) -> Program:
    """Sums over value columns, gradients of values and of weights; one (chunk, head, batch) per grid point."""
    own, w, rungs = b.own, b.own.writes, b.rungs
    with tile.Builder() as builder:
        f = frame(builder, b)
        at = _Rule(f)
        columns = at.columns()
        grad = at.weighted(columns.among)
        if rungs.outer:
            parts.leave(f, grad, columns.solved, columns.ending)
        else:
            parts.store(f, at.inside(grad, columns))
        tensors = [rungs.queries, rungs.keys, rungs.values, rungs.gate, b.grad_out, *of_writes(rungs)]
        tensors += [b.grad_states(0)] * bool(rungs.outer)
        grid = (tile.param(CHUNKS), w.heads, tile.param("B"))
        return own.program(builder, "values", [*tensors, *f.tensors], grid)


def lower_parts(b: Back) -> Program:
    """Gradients of F, T, K' and K" from those; one (chunk, head, batch) per grid point."""
    own, w, rungs = b.own, b.own.writes, b.rungs
    with tile.Builder() as builder:
        f = frame(builder, b)
        parts.store(f, _Rule(f).outside(Sums(*parts.left(f))))
        tensors = [rungs.queries, rungs.keys, *of_writes(rungs), b.grad_moves(0), b.pull, *b.sums]
        grid = (tile.param(CHUNKS), w.heads, tile.param("B"))
        return own.program(builder, "parts", [*tensors, *f.tensors], grid)


def lower(b: Back) -> Program:
    """Gradients of queries, keys, rates and decays from those; one (chunk, head, batch) per grid point."""
    own, w, rungs = b.own, b.own.writes, b.rungs
    with tile.Builder() as builder:
        f = frame(builder, b)
        _Rule(f).finish(parts.load(f))
        tensors = [rungs.queries, rungs.keys, *of_writes(rungs), *parts.tensors(b), *f.tensors]
        grid = (tile.param(CHUNKS), w.heads, tile.param("B"))
        return own.program(builder, "", tensors, grid)


@dataclass(frozen=True, slots=True)
class Sums:
    """What is summed over value columns.

    Attributes:
        among: dO Vᵀ ``[c,n]``, in the end times scale and G.
        solved: dU Vᵀ ``[t,n]``.
        ending: V dSᵀ ``[n,d]``, without the factors of K".
    """

    among: Node
    solved: Node
    ending: Node


@dataclass(frozen=True, slots=True)
class _Rule:
    f: Frame

    def left(self) -> Node:
        """L ``[t,n]``."""
        f = self.f
        return f.chunk.tile_of(f.b.own.solved, f.at.middle, tile.iota(f.axes.keys))

    def solve(self, x: Node) -> Node:
        """T x: ``[n,·]`` -> ``[n,·]``."""
        f, a = self.f, self.f.axes
        start = tile.rename(tile.cast(x, "float32"), a.keys, f.at.middle)
        return tile.rename(f.dot(self.left(), x, a.keys, start), f.at.middle, a.keys)

    def unsolve(self, x: Node) -> Node:
        """Tᵀ x: ``[n,·]`` -> ``[n,·]``."""
        f, a = self.f, self.f.axes
        return f.dot(self.left(), tile.rename(x, a.keys, f.at.middle), f.at.middle, tile.cast(x, "float32"))

    def after(self, x: Node) -> Node:
        """x Tᵀ: ``[·,n]`` -> ``[·,n]``, where the first axis is the queries'."""
        f, a = self.f, self.f.axes
        other = f.dot(x, self.left(), a.keys, tile.rename(x, a.keys, f.at.middle))
        return tile.rename(other, f.at.middle, a.keys)

    def ends(self) -> Node | None:
        """beta e^{Γ_C − Γ} ``[n]``."""
        return times(self.f.chunk.left(self.f.axes.keys), self.f.chunk.beta(self.f.axes.keys))

    def columns(self) -> Sums:
        """Over all value columns; dV is stored on the way."""
        f, a, b = self.f, self.f.axes, self.f.b
        effective = mul(f.at.effective(), b.rungs.among(f.chunk, a.queries, a.keys))
        weights = tile.cast(mul(effective, b.scale), b.own.writes.k.dtype)
        keys, ends = f.at.keys(), self.ends()

        def visit(number: Node, among: Node, solved: Node, ending: Node) -> Sequence[Node]:
            column, limit = f.column(number)
            do, v = f.grad_out(column, limit), f.values(column, limit)
            made, found = f.dot(weights, do, a.queries), [f.dot(do, v, a.columns, among), solved, ending]
            if b.rungs.outer:
                grad = f.of_block(b.grad_states(0), column)
                known = f.dot(keys, grad, a.dims)
                known = times(known, ends) or known
                made = add(made, self.unsolve(known))
                found[1] = f.dot(tile.rename(known, a.keys, f.at.middle), v, a.columns, solved)
                found[2] = f.dot(v, grad, a.columns, ending)
            f.wide(b.spec.grad_v, made, column, b.own.writes.cols, limit)
            return found

        square = tile.full(0.0, a.queries, a.keys), tile.full(0.0, f.at.middle, a.keys)
        return Sums(*tile.loop(0, b.own.tiles, 1, [*square, tile.full(0.0, a.keys, a.dims)], visit))

    def inside(self, grad: Node, s: Sums) -> Parts:
        """Where no chunk reads another, from G ⊙ scale dO Vᵀ."""
        return Parts(grad, self._of_solved(grad, s.solved))

    def outside(self, s: Sums) -> Parts:
        """With what readers of the chunk's block, and the chunk's own reads, ask; dK' is stored on the way."""
        f, a, b = self.f, self.f.axes, self.f.b
        keys, ends, effective = f.at.keys(), self.ends(), tile.cast(f.at.effective(), b.own.writes.k.dtype)
        tiles, row = -(-a.dims.size // a.columns.size), tile.iota(a.dims)

        def visit(number: Node, grad: Node, solved: Node, ending: Node, whole: Node) -> Sequence[Node]:
            column = column_of(number, a.columns)
            moves, lifted = f.of_block(b.grad_moves(0), column), f.at.lifted(column)  # [d,e], [n,e]
            place = (f.chunk.batch, f.chunk.head, f.chunk.token(a.queries), column)
            pull = tile.load(b.pull, *place, bounds=edges(b.pull, [column]))
            lost = mul(tile.cast(lifted, "float32"), -1.0)
            written = f.dot(keys, moves, a.dims)
            written = mul(times(written, ends) or written, -1.0)  # dW [n,e]
            parts.lifted(f, column, sub(self.unsolve(written), f.dot(effective, pull, a.queries)))
            diagonal = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, row, column), tile.cast(moves, "float32"), 0.0)
            return [
                f.dot(pull, lost, a.columns, grad),
                f.dot(tile.rename(written, a.keys, f.at.middle), lifted, a.columns, solved),
                f.dot(lost, moves, a.columns, ending),
                add(whole, tile.reduce("sum", tile.reduce("sum", diagonal, a.columns), a.dims)),
            ]

        zero = [s.among, s.solved, s.ending, tile.const(0.0)]
        grad, solved, ending, whole = tile.loop(0, tiles, 1, zero, visit)
        return Parts(grad, self._of_solved(grad, solved), ending=self.solve(ending), whole=whole)

    def weighted(self, among: Node) -> Node:
        """G ⊙ scale dO Vᵀ; the weights' gradients are stored."""
        f, a = self.f, self.f.axes
        given = mul(among, f.b.scale)
        f.gates_among(mul(given, f.at.effective()))
        return mul(given, f.b.rungs.among(f.chunk, a.queries, a.keys))

    def _of_solved(self, grad: Node, solved: Node) -> Node:
        """dT ``[t,n]``."""
        f, a = self.f, self.f.axes
        return f.dot(tile.rename(f.at.seen(), a.keys, f.at.middle), grad, a.queries, solved)

    def of_keys(self, solved: Node) -> Node:
        """dA ``[c,n]``, strictly lower, before its decays and rates."""
        f, a = self.f, self.f.axes
        grad = tile.rename(solved, f.at.middle, a.queries)
        left = f.chunk.tile_of(f.b.own.solved, f.at.middle, tile.iota(a.queries))
        once = f.dot(left, solved, f.at.middle, grad)
        return mul(self.after(once), -1.0)

    def finish(self, p: Parts) -> None:
        """Everything that is no sum over value columns."""
        f, a, b, chunk = self.f, self.f.axes, self.f.b, self.f.chunk
        q, k, beta = f.at.queries(), f.at.keys(), chunk.beta(a.keys)
        other = tile.rename(k, a.keys, a.queries)
        of_seen = visible(b.own, chunk, a, self.after(p.effective), "after")
        of_keys = visible(b.own, chunk, a, self.of_keys(p.solved), "before")
        passed = add(mul(of_seen, f.dot(q, k, a.dims)), mul(of_keys, f.dot(other, k, a.dims)))
        sums = self.of_rows(times(of_seen, beta) or of_seen, times(of_keys, beta) or of_keys)
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

    def of_rows(self, of_seen: Node, of_keys: Node) -> list[Node]:
        """Gradients of queries ``[c,d]`` and keys ``[n,d]``, stored some columns at a time.

        Returns, summed over d, e^Γ q dX ``[c]``, k e^Γ dK' and k e^{Γ_C − Γ} dK" ``[n]``: what decays gain by them.
        """
        f, a, b, chunk = self.f, self.f.axes, self.f.b, self.f.chunk
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

        zeros = [tile.full(0.0, axis) for axis in (a.queries, a.keys, a.keys)] if b.rungs.outer else []
        return tile.loop(0, tiles, 1, zeros, visit)


def _along(x: Node, grad: Node, dims: Axis) -> Node:
    """Σ_d x · grad."""
    return tile.reduce("sum", mul(tile.cast(x, "float32"), grad), dims)
