"""Gradients per token from the states before and the gradients after every chunk, all chunks side by side.

With U what is written without beta (V, or what a delta rule's state did not know), M and G of the chunk, Y = dU of a
delta rule, E = tril(e^{Γ_i − Γ_j}), E' the same without its diagonal, S = Q Kᵀ, X = scale dO Uᵀ, A = E' K Kᵀ and
C = −E' Y Uᵀ:

    dQ = scale e^Γ dO Mᵀ + (E X beta) K
    dK = e^{Γ_C − Γ} beta U Gᵀ + (E X beta)ᵀ Q            and of a delta rule − e^Γ Y Mᵀ + (C beta) K + (C beta)ᵀ K
    dV = beta (e^{Γ_C − Γ} K G + scale (E S)ᵀ dO)         or Y of a delta rule
    dbeta_j = Σ_i (E X S + C A)_ij + e^{Γ_C − Γ_j} k_j·(G u_j)

A log-decay scales all that passes its token: its gradient sums, from its token on, what rows gain and columns lose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk import resets, strengths, units
from sparsec.lower.scan.chunk.back import Back
from sparsec.lower.scan.chunk.operands import operands, product, times
from sparsec.lower.scan.chunk.outputs import visible
from sparsec.lower.scan.chunk.parts import CHUNKS, Chunk, column_limit, power_of_two
from sparsec.lower.scan.chunk.state import Axes, axes
from sparsec.plan.states.scan_specs import Operand
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor


def lower(b: Back) -> Program:
    """One (chunk, head, batch) per grid point."""
    own, w = b.own, b.own.writes
    with tile.Builder() as builder:
        chunk = Chunk(own, tile.program_id(2), tile.program_id(1), tile.program_id(0))
        at = Tokens(b, chunk, axes(builder, own, "cnde"))
        sums = at.sums()
        stored = _Stored(at, at.finished(sums))
        grid = (tile.param(CHUNKS), w.heads, tile.param("B"))
        return own.program(builder, "", [*at.tensors(), *stored.all(), *resets.tensors(own)], grid)


@dataclass(frozen=True, slots=True)
class Sums:
    """What is summed over value columns.

    Attributes:
        x: scale dO Uᵀ ``[c,n]``; c: −Y Uᵀ ``[c,n]``.
        q: dO Mᵀ ``[c,d]``; k: U Gᵀ ``[n,d]``; y: Y Mᵀ ``[c,d]``.
        kept: <M, G>.
    """

    x: Node
    q: Node
    k: Node
    kept: Node
    c: Node | None = None
    y: Node | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """Gradients of a chunk in fp32: ``[c,d]``, ``[n,d]``, ``[n]`` and ``[n]``; of what multiplies queries ``[c]``."""

    q: Node
    k: Node
    beta: Node
    decay: Node | None
    weight: Node | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """One chunk of one head."""

    b: Back
    chunk: Chunk
    axes: Axes

    def _rows(self, tensor: Tensor, queries: bool, column: Node, limit: int) -> Node:
        return self.chunk.rows(tensor, self.chunk.head, self.axes.queries if queries else self.axes.keys, column, limit)

    @property
    def _row_limit(self) -> int:
        return column_limit(self.b.own.writes.rows, self.axes.dims.size)

    def queries(self) -> Node:
        """Q ``[c,d]``."""
        return self._rows(self.b.queries, True, tile.iota(self.axes.dims), self._row_limit)

    def keys(self) -> Node:
        """K ``[n,d]``."""
        w = self.b.own.writes
        return self._rows(self.b.own.tensor(w.k, w.heads, w.rows), False, tile.iota(self.axes.dims), self._row_limit)

    def _dot(self, a: Node, b: Node, over: Axis, acc: Node | None = None) -> Node:
        return tile.dot(a, b, over, acc, self.b.own.schedule.precision)

    def _product(self, a: Sequence[Node], b: Sequence[Node], over: Axis, total: Node | None = None) -> Node:
        return product(a, b, over, total, self.b.own.schedule.precision)

    def _cotangents(self, column: Node, limit: int) -> list[Node]:
        """dO ``[c,e]`` as operands."""
        return operands(self._rows(self.b.grad_out, True, column, limit), self.b.own.writes)

    def scores(self) -> Node:
        """S, faded and causal ``[c,n]``."""
        found = self._dot(self.queries(), self.keys(), self.axes.dims)
        factors = self._of_queries(self.axes.queries), self._of_keys(self.axes.keys)
        return visible(self.b.own, self.chunk, self.axes, found, "after", factors=factors)

    def _of_queries(self, axis: Axis) -> Node | None:
        """What brings queries to length 1."""
        return self.b.of_queries(self.chunk, self.chunk.token(axis))

    def _of_keys(self, axis: Axis) -> Node | None:
        """What brings keys to length 1."""
        return units.of_keys(self.chunk, self.chunk.token(axis))

    def _strengths(self) -> Node | None:
        """beta, without the lengths of keys."""
        chunk, token = self.chunk, self.chunk.token(self.axes.keys)
        return strengths.given(chunk, token) if self.b.own.writes.k.unit else chunk.beta_at(token)

    def written(self, column: Node, limit: int) -> Node:
        """U ``[n,e]``."""
        own, chunk = self.b.own, self.chunk
        if not own.delta:
            return self._rows(own.tensor(own.writes.v, own.writes.heads, own.writes.cols), False, column, limit)
        bounds: dict[int, tile.Value] = {3: limit} if limit else {}
        return tile.load(self.b.surprises, chunk.batch, chunk.head, chunk.token(self.axes.keys), column, bounds=bounds)

    def _per_chunk(self, tensor: Tensor, column: Node, limit: int) -> Node:
        found = {3: self._row_limit, 4: limit}
        place = (self.chunk.batch, self.chunk.head, self.chunk.number, tile.iota(self.axes.dims), column)
        return tile.load(tensor, *place, bounds={dim: n for dim, n in found.items() if n})

    def sums(self) -> Sums:
        """Over all value columns; the gradient of V of an additive rule is stored on the way."""
        a, own = self.axes, self.b.own
        tiles, cols = own.tiles, own.writes.cols
        square, wide = tile.full(0.0, a.queries, a.keys), tile.full(0.0, a.queries, a.dims)
        inits = [square, wide, tile.full(0.0, a.keys, a.dims), tile.const(0.0)] + [square, wide] * own.delta
        scores = None if own.delta or self.b.spec.grad_v is None else mul(self.scores(), self.b.read.scale)

        def visit(number: Node, x: Node, q: Node, k: Node, kept: Node, *more: Node) -> Sequence[Node]:
            column = add(mul(number, own.columns), tile.iota(a.columns))
            limit = column_limit(cols, tiles * own.columns)
            do, u = self._cotangents(column, limit), self.written(column, limit)
            state, grad = (self._per_chunk(t, column, limit) for t in (self.b.states, self.b.grad_states))
            before, after = operands(state, own.writes), operands(grad, own.writes)
            if scores is not None:
                self._store_values(column, limit, scores, do, after)
            found = [self._product(do, [u], a.columns, x), self._product(do, before, a.columns, q)]
            found += [self._product([u], after, a.columns, k), add(kept, _inner(state, grad)) if own.decays else kept]
            if own.delta:
                y = tile.cast(self._rows(self.b.grad_values, True, column, limit), u.dtype)
                found += [self._dot(y, u, a.columns, more[0]), self._dot(y, state, a.columns, more[1])]
            return found

        x, q, k, kept, *more = tile.loop(0, resets.where_held(self.chunk, tiles), 1, inits, visit)
        return Sums(x, q, k, kept, *more)

    def _store_values(self, column: Node, limit: int, scores: Node, do: Sequence[Node], grad: Sequence[Node]) -> None:
        a, w, chunk = self.axes, self.b.own.writes, self.chunk
        near = self._product([self.keys()], grad, a.dims)
        near = times(near, chunk.left(a.keys), self._of_keys(a.keys)) or near
        found = self._product(operands(scores, w), do, a.queries, near)
        found = times(found, self._strengths()) or found
        bounds: dict[int, tile.Value] = {1: tile.param(w.length)} | ({3: limit} if limit else {})
        place = (chunk.batch, chunk.token(a.keys), chunk.head, column)
        tile.store(self.b.grad_values, *place, value=tile.cast(found, self.b.grad_values.dtype), bounds=bounds)

    def finished(self, s: Sums) -> Found:
        """The gradients from what was summed."""
        a, own, chunk, scale = self.axes, self.b.own, self.chunk, self.b.read.scale
        q, k, beta, left = self.queries(), self.keys(), self._strengths(), chunk.left(a.keys)
        of_q, of_k = self._of_queries(a.queries), self._of_keys(a.keys)
        since = power_of_two(chunk.sums(a.queries)) if own.decays else None
        x = visible(own, chunk, a, mul(s.x, scale), "after")
        weighted, asked = _weighted(x, beta, (of_k, of_q), k.dtype)
        far_q, far_k = mul(times(s.q, since) or s.q, scale), times(s.k, left) or s.k
        grad_q = self._dot(weighted, k, a.keys, far_q)
        grad_k = self._dot(asked, q, a.queries, times(far_k, beta) or far_k)
        passed = mul(times(x, of_q, of_k) or x, self._dot(q, k, a.dims))
        ends = units.scaled(_row_products(k, far_k, a.dims), of_k)
        gains = units.scaled(_row_products(q, far_q, a.dims), of_q)
        weight = self._weight(grad_q, gains, passed, beta)
        if own.delta:
            grad_k, among, lost = self._of_the_rule(s, k, beta, since, grad_k)
            passed, gains = add(passed, among), sub(gains, lost)
        grad_beta = add(tile.reduce("sum", passed, a.queries), ends)
        if not own.decays:
            return Found(grad_q, grad_k, grad_beta, None, weight)
        rows = tile.reduce("sum", times(passed, beta) or passed, a.keys)
        gains = tile.rename(add(gains, rows), a.queries, a.keys)
        change = sub(gains, times(grad_beta, beta) or grad_beta)
        through = add(tile.reduce("sum", times(ends, beta) or ends, a.keys), mul(s.kept, power_of_two(chunk.total())))
        after = sub(tile.reduce("sum", change, a.keys), sub(tile.scan(change, a.keys), change))
        return Found(grad_q, grad_k, grad_beta, add(after, through), weight)

    def _weight(self, grad_q: Node, far: Node, near: Node, beta: Node | None) -> Node | None:
        """Gradients of queries times queries ``[c]``, if e's is asked for: of those read ``far`` and ``near``."""
        a, others = self.axes, self.b.unweighed_queries()
        if self.b.spec.grad_weight is None:
            return None
        if not others:
            return add(far, tile.reduce("sum", times(near, beta) or near, a.keys))
        return _row_products(self._rows(others[0], True, tile.iota(a.dims), self._row_limit), grad_q, a.dims)

    def _of_the_rule(
        self, s: Sums, k: Node, beta: Node | None, since: Node | None, grad_k: Node
    ) -> tuple[Node, Node, Node]:
        """What a delta rule adds: dK, C A ``[c,n]``, and what its rows lose of the state ``[c]``."""
        a, own, chunk = self.axes, self.b.own, self.chunk
        assert s.c is not None and s.y is not None
        c = visible(own, chunk, a, mul(s.c, -1.0), "before")
        other, rows, columns = tile.rename(k, a.keys, a.queries), self._of_keys(a.queries), self._of_keys(a.keys)
        weighted, asked = _weighted(c, beta, (columns, rows), k.dtype)
        known = times(s.y, since) or s.y
        grad_k = sub(tile.rename(grad_k, a.keys, a.queries), known)
        grad_k = tile.rename(self._dot(weighted, k, a.keys, grad_k), a.queries, a.keys)
        grad_k = self._dot(asked, other, a.queries, grad_k)
        lost = units.scaled(_row_products(other, known, a.dims), rows)
        return grad_k, mul(times(c, rows, columns) or c, self._dot(other, k, a.dims)), lost

    def tensors(self) -> list[Tensor]:
        """What is read."""
        b, own, w = self.b, self.b.own, self.b.own.writes
        found = [
            b.queries,
            *b.unweighed_queries(),
            own.tensor(w.k, w.heads, w.rows),
            b.grad_out,
            b.states,
            b.grad_states,
            *b.lengths(),
        ]
        found += [b.surprises, b.grad_values] if own.delta else [own.tensor(w.v, w.heads, w.cols)]
        found += strengths.tensors(own) if w.k.unit else own.betas()
        return found + [own.sums] * own.decays


def _weighted(x: Node, beta: Node | None, lengths: tuple[Node | None, Node | None], dtype: str) -> list[Node]:
    """x times beta as operands of products with the keys, and with what asks, each with its factor per token."""
    if lengths == (None, None):
        return [tile.cast(times(x, beta) or x, dtype)] * 2
    return [tile.cast(times(x, beta, factor) or x, dtype) for factor in lengths]


def _row_products(a: Node, b: Node, over: Axis) -> Node:
    """The products of the rows of two tiles in fp32."""
    return tile.reduce("sum", mul(tile.cast(a, "float32"), tile.cast(b, "float32")), over)


def _inner(a: Node, b: Node) -> Node:
    """The sum of products of two tiles."""
    product = mul(tile.cast(a, "float32"), tile.cast(b, "float32"))
    while product.axes:
        product = tile.reduce("sum", product, product.axes[-1])
    return product


class _Stored:
    """The gradients that are asked for, stored."""

    def __init__(self, at: Tokens, found: Found) -> None:
        spec, w = at.b.spec, at.b.own.writes
        self.at = at
        self.tensors = [at.b.grad_values] if spec.grad_v is not None and not at.b.own.delta else []
        for operand, value in ((spec.grad_q[0], found.q), (spec.grad_k, found.k)):
            if operand is not None:
                self._wide(at.b.own.tensor(operand, w.heads, w.rows), value)
        narrow = (spec.grad_beta, found.beta), (spec.grad_decay, found.decay), (spec.grad_weight, found.weight)
        for operand, per_token in narrow:
            if operand is not None and per_token is not None:
                self._narrow(operand, tile.cast(per_token, operand.dtype))

    def all(self) -> list[Tensor]:
        """The tensors that are written."""
        return self.tensors

    def _wide(self, tensor: Tensor, value: Node) -> None:
        a, w, chunk = self.at.axes, self.at.b.own.writes, self.at.chunk
        tokens = a.queries if a.queries in value.axes else a.keys
        bounds: dict[int, tile.Value] = {1: tile.param(w.length)}
        if limit := column_limit(w.rows, a.dims.size):
            bounds[3] = limit
        place = (chunk.batch, chunk.token(tokens), chunk.head, tile.iota(a.dims))
        tile.store(tensor, *place, value=tile.cast(value, tensor.dtype), bounds=bounds)
        self.tensors.append(tensor)

    def _narrow(self, operand: Operand, value: Node) -> None:
        w, chunk = self.at.b.own.writes, self.at.chunk
        tensor = self.at.b.own.tensor(operand, w.heads)
        token = chunk.token(value.axes[0])
        tile.store(tensor, chunk.batch, token, chunk.head, value=value, bounds={1: tile.param(w.length)})
        self.tensors.append(tensor)
