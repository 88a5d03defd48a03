"""One step of a state over a chunk: the answers to what the rule asks, what is written, and the state after it."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk.operands import halves, product
from sparsec.lower.scan.chunk.parts import Chunk, column_limit, power_of_two
from sparsec.lower.scan.chunk.place import Place
from sparsec.lower.scan.chunk.state import Axes, axes, usual_order
from sparsec.lower.scan.keyed.sides import Keyed, Side
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor


@dataclass(frozen=True, slots=True)
class Walk:
    """A program's walk over the chunks of one head and tile of columns.

    Attributes:
        place: the program's segment, tile of columns, batch entry and head.
        column: indices of the value columns, ``reach`` more than the largest that any program has.
    """

    keyed: Keyed
    axes: Axes
    place: Place
    column: Node
    reach: int

    def bounds(self) -> tuple[Node, Node]:
        """The first chunk of the program's segment and the one after its last."""
        return self.place.bounds

    @property
    def limits(self) -> dict[int, tile.Value]:
        """Bounds of the last two dimensions of a state per segment or chunk."""
        w = self.keyed.own.writes
        found = {3: column_limit(w.rows, self.axes.dims.size), 4: column_limit(w.cols, self.reach)}
        return {dim: limit for dim, limit in found.items() if limit}

    def wide(self, tensor: Tensor, chunk: Chunk, tokens: Axis) -> Node:
        """Scratch of a chunk ``[tokens,d]``."""
        return chunk.tile_of(tensor, tokens, tile.iota(self.axes.dims))

    def square(self, tensor: Tensor, chunk: Chunk) -> Node:
        """Scratch of a chunk ``[c,n]``."""
        return chunk.tile_of(tensor, self.axes.queries, tile.iota(self.axes.keys))

    def per_value(self, tensor: Tensor, chunk: Chunk, tokens: Axis) -> Node:
        """A tensor ``[B,N,HKV,DV]``; 0 in columns that it does not have."""
        limit = column_limit(self.keyed.own.writes.cols, self.reach)
        return chunk.rows(tensor, chunk.head, tokens, self.column, limit)

    @property
    def values(self) -> Tensor:
        """V."""
        w = self.keyed.own.writes
        return self.keyed.own.tensor(w.v, w.heads, w.cols)

    def answered(self, chunk: Chunk, state: Node) -> Node | None:
        """U ``[c,e]`` in fp32, of the delta rule with v added; None where a rule asks nothing."""
        k, a = self.keyed, self.axes
        if k.asking is None:
            return None
        if k.solving:
            return self._solved(k.asking, chunk, state)
        v, precision = self.per_value(self.values, chunk, a.keys), k.own.schedule.precision
        start = tile.cast(tile.rename(v, a.keys, a.queries), "float32") if k.tied else None
        found = product(k.operands(self.square(k.passed, chunk)), [v], a.keys, start, precision)
        asked = self.wide(k.answers, chunk, a.queries)
        return product(k.operands(asked), k.operands(state), a.dims, found, precision)

    def _solved(self, asking: Side, chunk: Chunk, state: Node) -> Node:
        """(I − A_ab)⁻¹ (v + X_a M), of which the unit matrix takes no product."""
        k, a, precision = self.keyed, self.axes, self.keyed.own.schedule.precision
        asked, v = self.wide(k.faded(asking), chunk, a.keys), self.per_value(self.values, chunk, a.keys)
        known = product(k.operands(asked), k.operands(state), a.dims, None, precision)
        known = sub(tile.cast(v, "float32"), mul(known, -1.0))  # a sum would become the product's start: no load ahead
        whole = tile.rename(known, a.keys, a.queries)
        return product(k.operands(self.square(k.solved, chunk)), k.operands(known), a.keys, whole, precision)

    def written(self, column: Side, chunk: Chunk, answered: Node | None) -> list[Node]:
        """What a column carries, ``[n,e]``, as operands: two where rounding once would cost too much."""
        if answered is None or (column.name == "k" and not self.keyed.tied):
            return [self.per_value(self.values, chunk, self.axes.keys)]
        found = tile.rename(answered, self.axes.queries, self.axes.keys)
        return halves(found, self.keyed.own.writes.half)

    def after(self, chunk: Chunk, answered: Node | None, state: Node) -> Node:
        """The state after the chunk."""
        a = self.axes
        state = mul(state, power_of_two(self.total(chunk)))
        for column in self.keyed.columns:
            faded = self.keyed.operands(self.wide(self.keyed.faded(column), chunk, a.keys))
            written = self.written(column, chunk, answered)
            state = product(faded, written, a.keys, state, self.keyed.own.schedule.precision)
        return state

    def total(self, chunk: Chunk) -> Node:
        """The decay over a chunk, per key dim."""
        return tile.load(self.keyed.totals, chunk.batch, chunk.head, chunk.number, tile.iota(self.axes.dims))

    def tensors(self) -> list[Tensor]:
        """What the walk reads."""
        k = self.keyed
        found = [self.values, k.totals, *(k.faded(s) for s in k.columns)]
        if k.asking is None:
            return found
        return found + ([k.faded(k.asking), k.solved] if k.solving else [k.answers, k.passed])


def walk(builder: tile.Builder, keyed: Keyed, tiles: int, order: str = "") -> Walk:
    """The walk of one of ``tiles`` tiles of columns; the axes in ``order``, or in that of a walk forward."""
    made = axes(builder, keyed.own, order or usual_order(keyed.own))
    place = Place(keyed.own, tiles, keyed.own.writes.heads)
    column = add(mul(place.number, keyed.own.columns), tile.iota(made.columns))
    return Walk(keyed, made, place, column, tiles * keyed.own.columns)
