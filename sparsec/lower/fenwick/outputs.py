"""Outputs of all chunks side by side: what tokens see in their own chunk, and in the blocks that their chunk reads.

    O = scale ((F ⊙ G) V + Σ_j gate_j ⊙ (X_j S_j))        F = tril(Q Kᵀ e^{Γ_i − Γ_j}) beta T
    X_0 = e^Γ Q − F e^Γ K                                  X_{j+1} = X_j P_j

over the blocks j that the chunk reads, from the nearest one back, G the weights of the levels inside the chunk. Where P
is a number, e^Γ times those that were passed multiplies Q S_j instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.fenwick.leaf import of_writes
from sparsec.lower.fenwick.rungs import Rungs, column_of, edges, end, place, tile_number
from sparsec.lower.fenwick.visits import nearest_first
from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk.operands import halves, scaled, times
from sparsec.lower.scan.chunk.outputs import visible
from sparsec.lower.scan.chunk.parts import CHUNKS, Chunk, column_limit, power_of_two
from sparsec.lower.scan.chunk.state import Axes, axes
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor


def lower(rungs: Rungs) -> Program:
    """One (chunk and tile of columns, head, batch) per grid point."""
    own, w, read = rungs.own, rungs.own.writes, rungs.spec.read
    with tile.Builder() as builder:
        number, part = tile_number(own, own.tiles)
        chunk, a = Chunk(own, tile.program_id(2), tile.program_id(1), number), axes(builder, own, "cdne")
        other = builder.axis("f", a.dims.size), builder.axis("t", own.chunk)
        column, limit = column_of(part, a.columns), column_limit(w.cols, own.tiles * own.columns)
        at = Reader(rungs, chunk, a, *other)
        weights = at.effective()
        among = mul(weights, rungs.among(chunk, a.queries, a.keys))
        values = chunk.rows(rungs.values, chunk.head, a.keys, column, limit)
        out = tile.dot(tile.cast(among, values.dtype), values, a.keys, precision=own.schedule.precision)
        if rungs.outer:
            out = at.far(at.first(weights), out, column)
        bounds: dict[int, tile.Value] = {1: tile.param(w.length)} | ({3: limit} if limit else {})
        made = own.tensor(read.out, read.heads, w.cols)
        value = tile.cast(mul(out, read.scale), read.out.dtype)
        tile.store(made, chunk.batch, chunk.token(a.queries), chunk.head, column, value=value, bounds=bounds)
        tensors = [rungs.queries, rungs.keys, rungs.values, rungs.gate, *of_writes(rungs), made]
        tensors += rungs.carried() if rungs.outer else []
        grid = (mul(tile.param(CHUNKS), own.tiles), w.heads, tile.param("B"))
        return own.program(builder, "", tensors, grid)


@dataclass(frozen=True, slots=True)
class Reader:
    """One chunk of one head.

    Attributes:
        other, middle: a second axis of key dims, and one of the chunk's tokens.
    """

    rungs: Rungs
    chunk: Chunk
    axes: Axes
    other: Axis
    middle: Axis

    @property
    def row_limit(self) -> int:
        """The bound of key dims, where they are padded."""
        return column_limit(self.rungs.own.writes.rows, self.axes.dims.size)

    @property
    def precision(self) -> str:
        """Of products in fp32."""
        return self.rungs.own.schedule.precision

    def queries(self, column: Node | None = None) -> Node:
        """Q ``[c,d]``, or some of its columns."""
        return self._rows(self.rungs.queries, self.axes.queries, column)

    def keys(self, column: Node | None = None) -> Node:
        """K ``[n,d]``, or some of its columns."""
        return self._rows(self.rungs.keys, self.axes.keys, column)

    def _rows(self, tensor: Tensor, tokens: Axis, column: Node | None) -> Node:
        column = tile.iota(self.axes.dims) if column is None else column
        limit = self.rungs.own.writes.rows
        limit = limit if limit % column.axes[0].size else 0
        return self.chunk.rows(tensor, self.chunk.head, tokens, column, limit)

    def lifted(self, column: Node | None = None) -> Node:
        """e^Γ K ``[n,d]``, or some of its columns."""
        keys, own = self.keys(column), self.rungs.own
        return scaled(keys, power_of_two(self.chunk.sums(self.axes.keys)) if own.decays else None)

    def seen(self) -> Node:
        """E = tril(Q Kᵀ e^{Γ_i − Γ_j}) beta ``[c,n]``."""
        a, own = self.axes, self.rungs.own
        found = visible(
            own, self.chunk, a, tile.dot(self.queries(), self.keys(), a.dims, precision=self.precision), "after"
        )
        return times(found, self.chunk.beta(a.keys)) or found

    def effective(self) -> Node:
        """F = E T ``[c,n]``, in fp32."""
        own, a, seen = self.rungs.own, self.axes, self.seen()
        if not own.delta:
            return seen
        other = tile.cast(tile.rename(seen, a.keys, self.middle), own.writes.k.dtype)
        solved = self.chunk.tile_of(own.solved, self.middle, tile.iota(a.keys))
        return tile.dot(other, solved, self.middle, seen, self.precision)

    def first(self, weights: Node) -> Node:
        """X_0 of a delta rule, in fp32 ``[c,d]``; Q of others."""
        own, a, queries = self.rungs.own, self.axes, self.queries()
        if not own.delta:
            return queries
        lifted = times(tile.cast(queries, "float32"), power_of_two(self.chunk.sums(a.queries)) if own.decays else None)
        assert lifted is not None
        known = tile.dot(tile.cast(weights, own.writes.k.dtype), self.lifted(), a.keys, precision=self.precision)
        return sub(lifted, known)

    def far(self, x: Node, out: Node, column: Node) -> Node:
        """``out`` ``[c,e]`` plus what the blocks before the chunk answer."""
        delta = self.rungs.own.delta

        def read(here: Node, held: Node, out: Node) -> Sequence[Node]:
            answer = self.answer(held if delta else x, here, column)
            answer = mul(answer, self.share(here, None if delta else held))
            return [self.next(held, here), add(out, answer)]

        return nearest_first(self.rungs, self.chunk, [x if delta else self.passed(), out], read)[1]

    def passed(self) -> Node:
        """The decay since the blocks that were passed: none."""
        return tile.const(0.0)

    def block(self, number: Node) -> tuple[Node, Node, Node]:
        """The place of the block that is read at a level of chunks."""
        return place(self.chunk, sub(end(self.chunk.number, number), 1))

    def share(self, number: Node, passed: Node | None) -> Node:
        """What an answer of a level counts for ``[c]``: its weight, and, where that is a number, the decay since."""
        a = self.axes
        weight = self.rungs.weight(self.chunk, a.queries, add(number, self.rungs.inner))
        if passed is None or not self.rungs.own.decays:
            return weight
        return mul(weight, power_of_two(add(self.chunk.sums(a.queries), passed)))

    def state(self, number: Node, column: Node) -> Node:
        """S of the block that is read at a level ``[d,e]``."""
        index, tensor = (tile.iota(self.axes.dims), column), self.rungs.read_states
        return tile.load(tensor, *self.block(number), *index, bounds=edges(tensor, index))

    def answer(self, x: Node, number: Node, column: Node) -> Node:
        """X S ``[c,e]``."""
        found: Node | None = None
        for part in halves(x, self.rungs.own.writes.k.dtype) if x.dtype == "float32" else [x]:
            found = tile.dot(part, self.state(number, column), self.axes.dims, found, self.precision)
        assert found is not None
        return found

    def next(self, held: Node, number: Node) -> Node:
        """X P of a delta rule; of others the decay over the blocks that were passed."""
        own, a = self.rungs.own, self.axes
        if not own.delta:
            return add(held, tile.load(self.rungs.read_fades, *self.block(number))) if own.decays else held
        found: Node | None = None
        for part in halves(tile.rename(held, a.dims, self.other), own.writes.k.dtype):
            found = tile.dot(part, self.move(number, self.other, a.dims), self.other, found, self.precision)
        assert found is not None
        return found

    def move(self, number: Node, rows: Axis, columns: Axis) -> Node:
        """P of the block that is read at a level."""
        index, tensor = (tile.iota(rows), tile.iota(columns)), self.rungs.read_moves
        return tile.load(tensor, *self.block(number), *index, bounds=edges(tensor, index))

    def tensors(self) -> list[Tensor]:
        """What a chunk's queries are made of."""
        return [self.rungs.queries, self.rungs.keys, self.rungs.gate, *of_writes(self.rungs)]
