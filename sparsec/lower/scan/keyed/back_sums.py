"""What gradients per token sum over value columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsec.lower.scalars import add, mul
from sparsec.lower.scan.chunk.parts import Chunk, column_limit, power
from sparsec.lower.scan.chunk.state import Axes
from sparsec.lower.scan.keyed.backward import KeyedBack
from sparsec.lower.scan.keyed.sides import Side
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor

Squares = dict[tuple[str, str], Node]
"""Gradients of what a row sees of a column ``[c,n]`` in fp32, by their names."""


@dataclass(frozen=True, slots=True)
class Sums:
    """One chunk of one head."""

    b: KeyedBack
    chunk: Chunk
    axes: Axes

    def _over_columns(self, inits: Sequence[Node], step: Callable[..., Sequence[Node]]) -> list[Node]:
        """Sums over tiles of value columns of ``step(column, limit, *sums)``."""
        own = self.b.keyed.own
        limit = column_limit(own.writes.cols, own.tiles * own.columns)

        def visit(number: Node, *sums: Node) -> Sequence[Node]:
            return step(add(mul(number, own.columns), tile.iota(self.axes.columns)), limit, *sums)

        return tile.loop(0, own.tiles, 1, inits, visit)

    def _scratch(self, tensor: Tensor, tokens: Axis, column: Node, limit: int) -> Node:
        bounds: dict[int, tile.Value] = {3: limit} if limit else {}
        place = (self.chunk.batch, self.chunk.head, self.chunk.token(tokens), column)
        return tile.load(tensor, *place, bounds=bounds)

    def _asked(self, side: Side, column: Node, limit: int) -> Node:
        """The gradient of what a row is answered ``[c,e]``."""
        b, chunk, tokens = self.b, self.chunk, self.axes.queries
        if side.name == "q":
            return chunk.rows(b.back.grad_out, chunk.head, tokens, column, limit)
        if b.keyed.erases:
            return self._scratch(b.grad_answers, tokens, column, limit)
        return tile.cast(chunk.rows(b.back.grad_values, chunk.head, tokens, column, limit), b.keyed.own.writes.half)

    def _carried(self, side: Side, column: Node, limit: int) -> Node:
        """What a column carries ``[n,e]``."""
        b, chunk, w = self.b, self.chunk, self.b.keyed.own.writes
        if side.name == "b" or b.keyed.tied:
            return self._scratch(b.back.surprises, self.axes.keys, column, limit)
        return chunk.rows(b.keyed.own.tensor(w.v, w.heads, w.cols), chunk.head, self.axes.keys, column, limit)

    def _per_chunk(self, tensor: Tensor, dim: Node, column: Node, limit: int) -> Node:
        rows = self.b.keyed.own.writes.rows
        found = {3: column_limit(rows, power(rows)), 4: limit}
        place = (self.chunk.batch, self.chunk.head, self.chunk.number, dim, column)
        return tile.load(tensor, *place, bounds={dim: n for dim, n in found.items() if n})

    def _dot(self, a: Node, b: Node, acc: Node) -> Node:
        return tile.dot(a, b, self.axes.columns, acc, self.b.keyed.own.schedule.precision)

    def squares(self) -> Squares:
        """D_x C_yᵀ where x sees y."""
        a, keyed = self.axes, self.b.keyed
        pairs = [(row, column) for row in keyed.rows for column in keyed.columns]

        def step(column: Node, limit: int, *sums: Node) -> Sequence[Node]:
            return [
                self._dot(self._asked(x, column, limit), self._carried(y, column, limit), total)
                for (x, y), total in zip(pairs, sums, strict=True)
            ]

        sums = self._over_columns([tile.full(0.0, a.queries, a.keys)] * len(pairs), step)
        return {(x.name, y.name): self._seen(x, found) for (x, y), found in zip(pairs, sums, strict=True)}

    def _seen(self, side: Side, found: Node) -> Node:
        c, n = tile.iota(self.axes.queries), tile.iota(self.axes.keys)
        return tile.apply(Fn.WHERE, tile.apply(Fn.LT if side.strict else Fn.LE, n, c), found, 0.0)

    def of_row(self, side: Side, dim: Node) -> Node:
        """D_x Mᵀ ``[c,d]``."""

        def step(column: Node, limit: int, total: Node) -> Sequence[Node]:
            state = self._per_chunk(self.b.back.states, dim, column, limit)
            return [self._dot(self._asked(side, column, limit), state, total)]

        (found,) = self._over_columns([tile.full(0.0, self.axes.queries, self.axes.dims)], step)
        return found

    def of_column(self, side: Side, dim: Node) -> Node:
        """C_y Gᵀ ``[n,d]``."""

        def step(column: Node, limit: int, total: Node) -> Sequence[Node]:
            grad = self._per_chunk(self.b.back.grad_states, dim, column, limit)
            return [self._dot(self._carried(side, column, limit), grad, total)]

        (found,) = self._over_columns([tile.full(0.0, self.axes.keys, self.axes.dims)], step)
        return found

    def kept(self, dim: Node) -> Node:
        """The products of M and G summed over value columns ``[d]``."""

        def step(column: Node, limit: int, total: Node) -> Sequence[Node]:
            both = (self._per_chunk(t, dim, column, limit) for t in (self.b.back.states, self.b.back.grad_states))
            state, grad = (tile.cast(x, "float32") for x in both)
            return [add(total, tile.reduce("sum", mul(state, grad), self.axes.columns))]

        (found,) = self._over_columns([tile.full(0.0, self.axes.dims)], step)
        return found


def summed(b: KeyedBack) -> list[Tensor]:
    """What is read."""
    keyed, w = b.keyed, b.keyed.own.writes
    found = [b.back.grad_out, b.back.states, b.back.grad_states] + [b.back.surprises] * keyed.own.delta
    if keyed.tied:
        return [*found, b.back.grad_values]
    return [*found, keyed.own.tensor(w.v, w.heads, w.cols)] + [b.grad_answers] * keyed.erases
