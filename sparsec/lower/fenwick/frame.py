"""What the programs of one chunk's gradients share: loads, stores, and the weights' gradients inside the chunk."""

from __future__ import annotations

from sparsec.lower.fenwick.back import Back
from sparsec.lower.fenwick.outputs import Reader
from sparsec.lower.fenwick.rungs import column_of, distance, edges
from sparsec.lower.scan.chunk.parts import Chunk, column_limit
from sparsec.lower.scan.chunk.state import Axes
from sparsec.plan.states.scan_specs import Operand
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor


class Frame:
    """One chunk of one head, and the tensors that its program has written.

    Attributes:
        at: the chunk as its queries read it.
    """

    def __init__(self, b: Back, at: Reader) -> None:
        self.b, self.at = b, at
        self.tensors: list[Tensor] = []

    @property
    def chunk(self) -> Chunk:
        """The chunk."""
        return self.at.chunk

    @property
    def axes(self) -> Axes:
        """Its axes."""
        return self.at.axes

    def dot(self, a: Node, b: Node, over: Axis, acc: Node | None = None) -> Node:
        """A product whose operands are rounded to the dtype of the keys."""
        dtype = self.b.own.writes.k.dtype
        return tile.dot(tile.cast(a, dtype), tile.cast(b, dtype), over, acc, self.at.precision)

    def column(self, number: Node) -> tuple[Node, int]:
        """Indices of a tile of value columns, and their bound."""
        own = self.b.own
        return column_of(number, self.axes.columns), column_limit(own.writes.cols, own.tiles * own.columns)

    def grad_out(self, column: Node, limit: int) -> Node:
        """dO ``[c,e]`` in the dtype of the keys."""
        found = self.chunk.rows(self.b.grad_out, self.chunk.head, self.axes.queries, column, limit)
        return tile.cast(found, self.b.own.writes.k.dtype)

    def values(self, column: Node, limit: int) -> Node:
        """V ``[n,e]``."""
        return self.chunk.rows(self.b.rungs.values, self.chunk.head, self.axes.keys, column, limit)

    def of_block(self, tensor: Tensor, column: Node) -> Node:
        """A gradient of the chunk's own block ``[d,·]``, in the dtype of the keys."""
        index = (tile.iota(self.axes.dims), column)
        place = (self.chunk.batch, self.chunk.head, self.chunk.number, *index)
        return tile.cast(tile.load(tensor, *place, bounds=edges(tensor, index)), self.b.own.writes.k.dtype)

    def wide(self, operand: Operand | None, value: Node, column: Node, size: int, limit: int) -> None:
        """Store a gradient per token ``[·,size]``, if it is asked for."""
        if operand is not None:
            tensor, tokens = self.b.own.tensor(operand, self.b.own.writes.heads, size), self._tokens(value)
            bounds = self._bounds() | ({3: limit} if limit else {})
            place = (self.chunk.batch, self.chunk.token(tokens), self.chunk.head, column)
            self._store(tensor, place, value, bounds)

    def narrow(self, operand: Operand | None, value: Node) -> None:
        """Store a number per token, if it is asked for."""
        if operand is not None:
            tensor = self.b.own.tensor(operand, self.b.own.writes.heads)
            place = (self.chunk.batch, self.chunk.token(self._tokens(value)), self.chunk.head)
            self._store(tensor, place, value, self._bounds())

    def gate(self, level: Node | int, value: Node) -> None:
        """Store the gradient of a level's weights ``[c]``, if it is asked for."""
        if self.b.grad_gate is not None:
            place = (self.chunk.batch, self.chunk.token(self.axes.queries), self.chunk.head, tile.lift(level))
            self._store(self.b.grad_gate, place, value, self._bounds())

    def gates_among(self, passed: Node) -> None:
        """The weights' gradients inside the chunk, from gradients times what is seen ``[c,n]``."""
        apart = distance(self.axes.queries, self.axes.keys)
        for level in range(self.b.rungs.inner if self.b.grad_gate is not None else 0):
            mine = tile.apply(Fn.LT, apart, 1 << level)
            if level:
                mine = tile.apply(Fn.AND, mine, tile.apply(Fn.LE, 1 << level - 1, apart))
            self.gate(level, tile.reduce("sum", tile.apply(Fn.WHERE, mine, passed, 0.0), self.axes.keys))

    def _tokens(self, value: Node) -> Axis:
        return self.axes.queries if self.axes.queries in value.axes else self.axes.keys

    def _bounds(self) -> dict[int, tile.Value]:
        return {1: tile.param(self.b.own.writes.length)}

    def _store(self, tensor: Tensor, place: tuple[Node, ...], value: Node, bounds: dict[int, tile.Value]) -> None:
        tile.store(tensor, *place, value=tile.cast(value, tensor.dtype), bounds=bounds)
        if tensor not in self.tensors:
            self.tensors.append(tensor)
