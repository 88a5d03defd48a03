"""States before every chunk and gradients of those after it: two walks over each segment, forward and backward.

With G the gradient of the state after a chunk, and Z_y that of what column y carries:

    Z_y = A_qyᵀ dO + Y G        dv = Z_k + V'ᵀ Z_b        G <- e^Γ_C G + X_qᵀ dO + Wᵀ Z_b
    the gradient of (I − A_ab) U: (I − A_ab)⁻ᵀ Z_b, of the delta rule, whose b is k, dv
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.scalars import mul, sub
from sparsec.lower.scan.chunk import resets
from sparsec.lower.scan.chunk.back_states import final_gradient
from sparsec.lower.scan.chunk.operands import halves, operands, product
from sparsec.lower.scan.chunk.parts import Chunk, power_of_two
from sparsec.lower.scan.chunk.segments import store_final
from sparsec.lower.scan.keyed.backward import KeyedBack
from sparsec.lower.scan.keyed.outputs import first_state
from sparsec.lower.scan.keyed.sides import Side
from sparsec.lower.scan.keyed.walk import Walk, walk
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor


def lower_states(b: KeyedBack) -> Program:
    """The states before each chunk, and answers; one (segment, tile of columns, batch and head) per grid point."""
    keyed, own, w = b.keyed, b.keyed.own, b.keyed.own.writes
    with tile.Builder() as builder:
        at = walk(builder, keyed, own.tiles, "cdne")
        batch, head = at.place.batch, at.place.head
        state, tensors = first_state(at, batch, head)

        def visit(number: Node, state: Node) -> Sequence[Node]:
            chunk, place = Chunk(own, batch, head, number), (batch, head, number, tile.iota(at.axes.dims), at.column)
            state = resets.entered(chunk, state, place[3:], at.limits)
            tile.store(b.back.states, *place, value=tile.cast(state, w.half), bounds=dict(at.limits))
            answered = at.answered(chunk, state)
            if answered is not None:
                _keep(at, b.back.surprises, chunk, tile.rename(answered, at.axes.queries, at.axes.keys))
            return [at.after(chunk, answered, state)]

        tile.loop(*at.bounds(), 1, [state], visit)
        tensors += [*at.tensors(), b.back.states, *resets.tensors(own, w.initial)] + [b.back.surprises] * own.delta
        return own.program(builder, "states", tensors, at.place.grid)


def _keep(at: Walk, tensor: Tensor, chunk: Chunk, value: Node) -> None:
    """Store scratch per token and value column."""
    bounds: dict[int, tile.Value] = {3: at.limits[4]} if 4 in at.limits else {}
    place = (chunk.batch, chunk.head, chunk.token(at.axes.keys), at.column)
    tile.store(tensor, *place, value=tile.cast(value, tensor.dtype), bounds=bounds)


@dataclass(frozen=True, slots=True)
class Reverse:
    """A walk from the last chunk of a segment to its first."""

    b: KeyedBack
    at: Walk

    def step(self, chunk: Chunk, grad: Node) -> tuple[Node, Node, Node | None]:
        """Gradients of the state before the chunk, of v, and of what answers solve."""
        at, keyed, a = self.at, self.b.keyed, self.at.axes
        asked, precision = at.wide(keyed.faded(keyed.query), chunk, a.queries), keyed.own.schedule.precision
        do = at.per_value(self.b.back.grad_out, chunk, a.queries)
        before = mul(grad, power_of_two(at.total(chunk)))
        before = product(keyed.operands(asked), [do], a.queries, before, precision)
        values = self._carried(keyed.columns[0], chunk, do, grad)
        if keyed.asking is None:
            return before, values, None
        erased = values if keyed.tied else self._carried(keyed.columns[1], chunk, do, grad)
        solved = self._through(keyed.solved, chunk, erased, erased)
        answers = at.wide(keyed.answers, chunk, a.keys)
        before = product(keyed.operands(answers), halves(erased, keyed.own.writes.half), a.keys, before, precision)
        return before, solved if keyed.tied else self._through(keyed.passed, chunk, erased, values), solved

    def _carried(self, column: Side, chunk: Chunk, do: Node, grad: Node) -> Node:
        """The gradient of what a column carries ``[n,e]``."""
        at, keyed, a = self.at, self.b.keyed, self.at.axes
        precision, faded = keyed.own.schedule.precision, at.wide(keyed.faded(column), chunk, a.keys)
        split = not keyed.own.delta or keyed.own.schedule.exact
        found = product(keyed.operands(faded), operands(grad, keyed.own.writes, split), a.dims, None, precision)
        return tile.dot(at.square(keyed.seen(column), chunk), do, a.queries, found, precision)

    def _through(self, matrix: Tensor, chunk: Chunk, erased: Node, start: Node) -> Node:
        """``start`` and what a square matrix passes back ``[n,e]``."""
        at, keyed, a = self.at, self.b.keyed, self.at.axes
        other = keyed.operands(tile.rename(erased, a.keys, a.queries))
        return product(keyed.operands(at.square(matrix, chunk)), other, a.queries, start, keyed.own.schedule.precision)

    def tensors(self) -> list[Tensor]:
        """What the walk reads."""
        keyed = self.b.keyed
        found = [keyed.totals, keyed.faded(keyed.query), self.b.back.grad_out]
        found += [keyed.faded(s) for s in keyed.columns] + [keyed.seen(s) for s in keyed.columns]
        return found + [keyed.answers, keyed.solved, keyed.passed] * keyed.own.delta


def _reverse(builder: tile.Builder, b: KeyedBack) -> Reverse:
    return Reverse(b, walk(builder, b.keyed, b.keyed.own.tiles, "dnce"))


def lower_grad_ends(b: KeyedBack) -> Program:
    """What each segment makes of a zero gradient of the state after it."""
    own = b.keyed.own
    with tile.Builder() as builder:
        found = _reverse(builder, b)
        batch, head = found.at.place.batch, found.at.place.head
        first, last = found.at.bounds()

        def visit(i: Node, grad: Node) -> Sequence[Node]:
            chunk = Chunk(own, batch, head, sub(sub(last, 1), i))
            grad = resets.ended(chunk, b.back.spec.grad_final, grad, place, found.at.limits)
            return [found.step(chunk, grad)[0]]

        place = (tile.iota(found.at.axes.dims), found.at.column)
        zero = tile.full(0.0, found.at.axes.dims, found.at.axes.columns)
        (grad,) = tile.loop(0, sub(last, first), 1, [zero], visit)
        here = (batch, head, found.at.place.segment, *place)
        tile.store(b.back.grad_ends, *here, value=grad, bounds=dict(found.at.limits))
        tensors = [*found.tensors(), b.back.grad_ends, *resets.tensors(own, b.back.spec.grad_final)]
        return own.program(builder, "grad_ends", tensors, found.at.place.grid)


def lower_grad_states(b: KeyedBack) -> Program:
    """The gradients of the states after each chunk, of v, and of what answers solve."""
    own, w = b.keyed.own, b.keyed.own.writes
    with tile.Builder() as builder:
        found = _reverse(builder, b)
        batch, head = found.at.place.batch, found.at.place.head
        at, row = found.at, tile.iota(found.at.axes.dims)
        grad, tensors = _last_gradient(b, at, batch, head)
        first, last = found.at.bounds()

        def visit(i: Node, grad: Node) -> Sequence[Node]:
            chunk = Chunk(own, batch, head, sub(sub(last, 1), i))
            grad = resets.ended(chunk, b.back.spec.grad_final, grad, (row, at.column), at.limits)
            here = (batch, head, chunk.number, row, at.column)
            tile.store(b.back.grad_states, *here, value=tile.cast(grad, w.half), bounds=dict(at.limits))
            before, values, solved = found.step(chunk, grad)
            resets.keep_first(chunk, b.back.spec.grad_initial, before, (row, at.column), at.limits)
            if b.keeps_values:
                _store_values(b, at, chunk, values)
            if b.keyed.erases and solved is not None:
                _keep(at, b.grad_answers, chunk, solved)
            return [before]

        (grad,) = tile.loop(0, sub(last, first), 1, [grad], visit)
        tensors += resets.tensors(own, b.back.spec.grad_final, b.back.spec.grad_initial)
        if own.splits == 1 and b.back.spec.grad_initial is not None and own.runs is None:
            tensors.append(store_final(own, b.back.spec.grad_initial, (batch, head, row, at.column), grad, at.limits))
        tensors += [*found.tensors(), b.back.grad_states]
        tensors += [b.back.grad_values] * b.keeps_values + [b.grad_answers] * b.keyed.erases
        return own.program(builder, "grad_states", tensors, at.place.grid)


def _last_gradient(b: KeyedBack, at: Walk, batch: Node, head: Node) -> tuple[Node, list[Tensor]]:
    """The gradient of the state after a segment, and the tensors that it comes from."""
    row = tile.iota(at.axes.dims)
    if b.keyed.own.splits == 1:
        return final_gradient(b.back, (batch, head, row, at.column), at.limits)
    place = (batch, head, at.place.segment, row, at.column)
    return tile.load(b.back.grad_starts, *place, bounds=dict(at.limits)), [b.back.grad_starts]


def _store_values(b: KeyedBack, at: Walk, chunk: Chunk, values: Node) -> None:
    tensor = b.back.grad_values
    bounds: dict[int, tile.Value] = {1: tile.param(b.keyed.own.writes.length)}
    bounds |= {3: at.limits[4]} if 4 in at.limits else {}
    place = (chunk.batch, chunk.token(at.axes.keys), chunk.head, at.column)
    tile.store(tensor, *place, value=tile.cast(values, tensor.dtype), bounds=bounds)
