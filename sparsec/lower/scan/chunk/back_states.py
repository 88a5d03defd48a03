"""States before every chunk and gradients of those after it: two walks over each segment, forward and backward.

With G the gradient of the state after a chunk, Y that of V, and P = tril(Q Kᵀ e^{Γ_i − Γ_j}):

    dW = scale Pᵀ dO + e^{Γ_C − Γ} K G        Y = beta dW, or of a delta rule (I + A)⁻ᵀ beta dW
    G <- e^Γ_C G + scale (e^Γ Q)ᵀ dO          and of a delta rule − (e^Γ K)ᵀ Y
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk import resets, strengths, units
from sparsec.lower.scan.chunk.back import Back
from sparsec.lower.scan.chunk.operands import halves, operands, product, times
from sparsec.lower.scan.chunk.outputs import visible
from sparsec.lower.scan.chunk.parts import SEGMENTS, Chunk, column_limit, power_of_two
from sparsec.lower.scan.chunk.place import Place
from sparsec.lower.scan.chunk.segments import combining, initial_state, store_final, whole_states
from sparsec.lower.scan.chunk.state import Walk, walk
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor


def lower_states(b: Back) -> Program:
    """The states before each chunk, and what a delta rule writes; one (segment, columns, batch and head) per point."""
    own, w = b.own, b.own.writes
    with tile.Builder() as builder:
        found = Place(own, own.tiles, w.heads)
        at, batch, head = walk(builder, own, found.number, own.tiles, "cdne"), found.batch, found.head
        row, limits = tile.iota(at.axes.dims), state_limits(at)
        if own.splits == 1:
            state, tensors = initial_state(own, batch, head, row, at.column, limits)
        else:
            state = tile.load(own.starts, batch, head, found.segment, row, at.column, bounds=dict(limits))
            tensors = [own.starts]

        def visit(number: Node, state: Node) -> Sequence[Node]:
            chunk, place = Chunk(own, batch, head, number), (batch, head, number, row, at.column)
            state = resets.entered(chunk, state, (row, at.column), limits)
            tile.store(b.states, *place, value=tile.cast(state, b.states.dtype), bounds=dict(limits))
            keys = at.keys(chunk)
            written, after = at.passed(chunk, keys, state)
            if own.delta:
                bounds: dict[int, tile.Value] = {3: limits[4]} if 4 in limits else {}
                here = (batch, head, chunk.token(at.axes.keys), at.column)
                tile.store(b.surprises, *here, value=tile.cast(written, w.half), bounds=bounds)
            return [after]

        tile.loop(*found.bounds, 1, [state], visit)
        tensors += [*at.tensors(passed=True), b.states, *resets.tensors(own, w.initial)] + [b.surprises] * own.delta
        return own.program(builder, "states", tensors, found.grid)


def state_limits(at: Walk) -> dict[int, tile.Value]:
    """Bounds of the last two dimensions of a state per segment or chunk."""
    return at.limits


@dataclass(frozen=True, slots=True)
class Reverse:
    """A walk from the last chunk of a segment to its first."""

    b: Back
    at: Walk

    def rows(self, chunk: Chunk, tensor: Tensor, column: Node, limit: int) -> Node:
        """A tile per query."""
        return chunk.rows(tensor, chunk.head, self.at.axes.queries, column, limit)

    def step(self, chunk: Chunk, grad: Node) -> tuple[Node, Node | None]:
        """The gradient of the state before the chunk; of a delta rule that of its values too."""
        at, own, a = self.at, self.at.own, self.at.axes
        keys, precision = at.keys(chunk), own.schedule.precision
        q = self.rows(chunk, self.b.queries, tile.iota(a.dims), at.row_limit)
        do = self.rows(chunk, self.b.grad_out, at.column, column_limit(own.writes.cols, at.reach))
        faded = mul(grad, power_of_two(chunk.total())) if own.decays else grad
        since = power_of_two(chunk.sums(a.queries)) if own.decays else None
        shares = self._shares(do, times(since, self.b.of_queries(chunk, chunk.token(a.queries))))
        for part in shares:
            faded = tile.dot(q, part, a.queries, faded, precision)
        if not own.delta:
            return faded, None
        values = self._values(chunk, keys, q, do, grad)
        since = power_of_two(chunk.sums(a.keys)) if own.decays else None
        since = times(since, units.of_keys(chunk, chunk.token(a.keys)))
        for part in halves(mul(times(values, since) or values, -1.0), keys.dtype):
            faded = tile.dot(keys, part, a.keys, faded, precision)
        return faded, values

    def _shares(self, do: Node, since: Node | None) -> list[Node]:
        """scale e^Γ dO as operands."""
        wide, dtype = mul(times(tile.cast(do, "float32"), since) or do, self.b.read.scale), self.b.own.writes.half
        return halves(wide, dtype) if self.b.own.split else [tile.cast(wide, dtype)]

    def _values(self, chunk: Chunk, keys: Node, q: Node, do: Node, grad: Node) -> Node:
        """Y ``[n,e]``."""
        own, a = self.at.own, self.at.axes
        precision = own.schedule.precision
        exact = own.schedule.exact
        known = product([keys], operands(grad, own.writes, exact), a.dims, None, precision)
        unit = units.of_keys(chunk, chunk.token(a.keys))
        left = times(chunk.left(a.keys), unit)
        known = known if left is None else mul(known, left)
        factors = self.b.of_queries(chunk, chunk.token(a.queries)), unit
        scores = visible(own, chunk, a, tile.dot(keys, q, a.dims, precision=precision), "after", factors=factors)
        scores = mul(scores, self.b.read.scale)
        do = tile.cast(do, keys.dtype)
        found = product(operands(scores, own.writes, exact), [do], a.queries, known, precision)
        found = times(found, strengths.given(chunk, chunk.token(a.keys))) or found
        if self.b.spec.surprise is not None:
            found = add(found, self._handed(chunk))
        solved = tile.load(own.solved, chunk.batch, chunk.head, chunk.token(a.queries), tile.iota(a.keys))
        other = operands(tile.rename(found, a.keys, a.queries), own.writes, exact)
        return product(operands(solved, own.writes, exact), other, a.queries, found, precision)

    def _handed(self, chunk: Chunk) -> Node:
        """The gradient of what is written that others hand back ``[n,e]``."""
        own, w = self.b.own, self.b.own.writes
        assert self.b.spec.surprise is not None
        tensor, limit = own.tensor(self.b.spec.surprise, w.heads, w.cols), column_limit(w.cols, self.at.reach)
        return tile.cast(chunk.rows(tensor, chunk.head, self.at.axes.keys, self.at.column, limit), "float32")

    def tensors(self) -> list[Tensor]:
        """What the walk reads."""
        own, w = self.b.own, self.b.own.writes
        found = [self.b.queries, self.b.grad_out, *self.b.lengths()] + [own.sums] * own.decays
        if own.delta:
            found += [own.tensor(w.k, w.heads, w.rows), own.solved]
            found += strengths.tensors(own)
        if self.b.spec.surprise is not None:
            found.append(own.tensor(self.b.spec.surprise, w.heads, w.cols))
        return found


def _reverse(builder: tile.Builder, b: Back) -> tuple[Reverse, Place]:
    place = Place(b.own, b.own.tiles, b.own.writes.heads)
    return Reverse(b, walk(builder, b.own, place.number, place.tiles, "dnce")), place


def lower_grad_ends(b: Back) -> Program:
    """What each segment makes of a zero gradient of the state after it; of the first only where that matters."""
    own = b.own
    with tile.Builder() as builder:
        found, at = _reverse(builder, b)
        batch, head = at.batch, at.head
        first, last = at.bounds
        if own.runs is None and b.spec.grad_initial is None:
            last = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, at.segment, 0), first, last)

        def visit(i: Node, grad: Node) -> Sequence[Node]:
            chunk = Chunk(own, batch, head, sub(sub(last, 1), i))
            grad = resets.ended(chunk, b.spec.grad_final, grad, place, state_limits(found.at))
            return [found.step(chunk, grad)[0]]

        place = (tile.iota(found.at.axes.dims), found.at.column)
        zero = tile.full(0.0, found.at.axes.dims, found.at.axes.columns)
        (grad,) = tile.loop(0, sub(last, first), 1, [zero], visit)
        tile.store(b.grad_ends, batch, head, at.segment, *place, value=grad, bounds=state_limits(found.at))
        tensors = [*found.tensors(), b.grad_ends, *resets.tensors(own, b.spec.grad_final)]
        return own.program(builder, "grad_ends", tensors, at.grid)


def lower_grad_states(b: Back) -> Program:
    """The gradients of the states after each chunk, of a delta rule those of its values, and of the first state."""
    own, w = b.own, b.own.writes
    with tile.Builder() as builder:
        found, own_place = _reverse(builder, b)
        batch, head = own_place.batch, own_place.head
        at, row, limits = found.at, tile.iota(found.at.axes.dims), state_limits(found.at)
        if own.splits == 1:
            grad, tensors = final_gradient(b, (batch, head, row, at.column), limits)
        else:
            grad = tile.load(b.grad_starts, batch, head, own_place.segment, row, at.column, bounds=dict(limits))
            tensors = [b.grad_starts]
        first, last = own_place.bounds

        def visit(i: Node, grad: Node) -> Sequence[Node]:
            chunk = Chunk(own, batch, head, sub(sub(last, 1), i))
            grad = resets.ended(chunk, b.spec.grad_final, grad, (row, at.column), limits)
            here = (batch, head, chunk.number, row, at.column)
            tile.store(b.grad_states, *here, value=tile.cast(grad, b.grad_states.dtype), bounds=dict(limits))
            before, values = found.step(chunk, grad)
            resets.keep_first(chunk, b.spec.grad_initial, before, (row, at.column), limits)
            if values is not None:
                bounds: dict[int, tile.Value] = {1: tile.param(w.length), **({3: limits[4]} if 4 in limits else {})}
                place = (batch, chunk.token(at.axes.keys), head, at.column)
                tile.store(b.grad_values, *place, value=tile.cast(values, b.grad_values.dtype), bounds=bounds)
            return [before]

        (grad,) = tile.loop(0, sub(last, first), 1, [grad], visit)
        tensors += resets.tensors(own, b.spec.grad_final, b.spec.grad_initial)
        if own.splits == 1 and b.spec.grad_initial is not None and own.runs is None:
            place = (batch, head, row, at.column)
            tensors.append(store_final(own, b.spec.grad_initial, place, grad, limits))
        tensors += [*found.tensors(), b.grad_states] + [b.grad_values] * own.delta
        return own.program(builder, "grad_states", tensors, own_place.grid)


def final_gradient(
    b: Back, place: tuple[Node, Node, Node, Node], limits: dict[int, tile.Value]
) -> tuple[Node, list[Tensor]]:
    """The gradient of the states after the last token, and the tensor that it comes from."""
    if b.spec.grad_final is None or b.own.runs is not None:
        return tile.full(0.0, place[2].axes[0], place[3].axes[0]), []
    tensor = whole_states(b.own, b.spec.grad_final)
    return tile.load(tensor, place[0], 0, *place[1:], bounds=dict(limits)), [tensor]


def lower_grad_starts(b: Back) -> Program:
    """The gradients of the states after each segment, from the last segment back."""
    own, w = b.own, b.own.writes
    with tile.Builder() as builder:
        at = combining(builder, own)
        grad, tensors = final_gradient(b, (at.batch, at.head, at.row, at.column), at.limits)

        def visit(i: Node, grad: Node) -> Sequence[Node]:
            here = (at.batch, at.head, sub(sub(tile.param(SEGMENTS), 1), i))
            tile.store(b.grad_starts, *here, at.row, at.column, value=grad, bounds=dict(at.limits))
            added = tile.load(b.grad_ends, *here, at.row, at.column, bounds=dict(at.limits))
            return [resets.handed_on(own, here, add(at.carried(here, grad, backwards=True), added))]

        (grad,) = tile.loop(0, tile.param(SEGMENTS), 1, [grad], visit)
        tensors += [b.grad_ends, b.grad_starts, *at.tensors(), *resets.tensors(own)]
        if b.spec.grad_initial is not None and own.runs is None:
            place = (at.batch, at.head, at.row, at.column)
            tensors.append(store_final(own, b.spec.grad_initial, place, grad, at.limits))
        return own.program(builder, "grad_starts", tensors, (at.tiles, w.heads, tile.param("B")))
