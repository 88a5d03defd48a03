"""One step of a state over a chunk: what it answers, what is written, and the state after it."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk import factors, units
from sparsec.lower.scan.chunk.operands import halves, operands, product, scaled, times
from sparsec.lower.scan.chunk.parts import Chunk, Chunked, column_limit, power, power_of_two
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor

_LEFT = 64
"""Rows of a left operand of a warp group."""


@dataclass(frozen=True, slots=True)
class Axes:
    """The axes of a program that walks over chunks: queries, key dims, keys and value columns."""

    queries: Axis
    dims: Axis
    keys: Axis
    columns: Axis


def axes(builder: tile.Builder, own: Chunked, order: str) -> Axes:
    """Declared in the order in which a program's products need the fewest transposed tiles."""
    sizes = {"c": own.chunk, "d": power(own.writes.rows), "n": own.chunk, "e": own.columns}
    made = {name: builder.axis(name, sizes[name]) for name in order}
    return Axes(made["c"], made["d"], made["n"], made["e"])


def usual_order(own: Chunked) -> str:
    """Of the axes of a walk forward.

    With 64 value columns first, tensor cores take states and what is written from registers as left operands, so that
    nothing of the chain from chunk to chunk goes through shared memory; fewer columns are no left operand of Hopper's.
    """
    return "ecdn" if own.columns >= _LEFT else "cdne"


@dataclass(frozen=True, slots=True)
class Walk:
    """A program's walk over the chunks of one head and tile of columns.

    Attributes:
        column: indices of the value columns, ``reach`` more than the largest that any program has.
    """

    own: Chunked
    axes: Axes
    column: Node
    reach: int

    def keys(self, chunk: Chunk) -> Node:
        """K of the chunk as ``[d,n]``."""
        w = self.own.writes
        tensor = self.own.tensor(w.k, w.heads, w.rows)
        return chunk.rows(tensor, chunk.head, self.axes.keys, tile.iota(self.axes.dims), self.row_limit)

    @property
    def limits(self) -> dict[int, tile.Value]:
        """Bounds of the last two dimensions of a state, where they are padded."""
        found = {3: self.row_limit, 4: column_limit(self.own.writes.cols, self.reach)}
        return {dim: limit for dim, limit in found.items() if limit}

    @property
    def row_limit(self) -> int:
        """The bound of key dims, where they are padded."""
        return column_limit(self.own.writes.rows, self.axes.dims.size)

    def values(self, chunk: Chunk) -> Node:
        """V of the chunk as ``[n,e]``; 0 in columns that V does not have."""
        w = self.own.writes
        tensor = self.own.tensor(w.v, w.heads, w.cols)
        return chunk.rows(tensor, chunk.head, self.axes.keys, self.column, column_limit(w.cols, self.reach))

    def written(self, chunk: Chunk, keys: Node, state: Node, factored: bool = False) -> Node:
        """What is written ``[n,e]``, without beta: V or, in fp32, what a delta rule's state does not know of it.

        Where it is ``factored`` e^Γ is read from memory.
        """
        values = self.values(chunk)
        if not self.own.delta:
            return values
        own, a, precision = self.own, self.axes, self.own.schedule.precision
        known = product([keys], operands(state, own.writes, own.schedule.exact), a.dims, None, precision)
        fade = factors.faded(chunk, tile.iota(a.keys)) if factored else self._fade(chunk)
        factor = times(fade, units.of_keys(chunk, chunk.token(a.keys)))
        known = known if factor is None else mul(known, factor)
        surprise = sub(tile.cast(values, "float32"), known)
        solved = chunk.tile_of(self.own.solved, a.queries, tile.iota(a.keys))
        start = tile.rename(surprise, a.keys, a.queries)
        matrix, surprises = (operands(x, own.writes, own.schedule.exact) for x in (solved, surprise))
        found = product(matrix, surprises, a.keys, start, precision)
        return tile.rename(found, a.queries, a.keys)

    def _fade(self, chunk: Chunk) -> Node | None:
        return power_of_two(chunk.sums(self.axes.keys)) if self.own.decays else None

    def strong(self, chunk: Chunk, written: Node) -> Node:
        """Of a delta rule times beta, so that one product serves both who reads and the state; else as it is."""
        beta = chunk.beta(self.axes.keys) if self.own.folds else None
        return written if beta is None else mul(written, beta)

    def after(self, chunk: Chunk, keys: Node, written: Node, state: Node) -> Node:
        """The state after the chunk, in which ``strong`` values are written."""
        state = mul(state, power_of_two(chunk.total())) if self.own.decays else state
        return self.added(chunk, keys, written, state)

    def passed(self, chunk: Chunk, keys: Node, state: Node) -> tuple[Node, Node]:
        """What is written, and the state after the chunk, of a walk that is asked nothing else."""
        own, a, factored = self.own, self.axes, factors.read(self.own)
        written = self.written(chunk, keys, state, factored)
        if not factored:
            return written, self.after(chunk, keys, self.strong(chunk, written), state)
        lasting, total = factors.lasting(chunk, tile.iota(a.keys)), factors.faded(chunk, own.chunk - 1)
        state = mul(state, total)
        for part in self.parts(written, lasting):
            state = tile.dot(keys, part, a.keys, state, own.schedule.precision)
        return written, state

    def added(self, chunk: Chunk, keys: Node, written: Node, state: Node, further: Node | None = None) -> Node:
        """A state and what is left of the chunk's writes at its end, or after ``further`` decay."""
        a, beta = self.axes, None if self.own.folds else chunk.beta(self.axes.keys)
        for part in self.parts(written, chunk.left(a.keys, further), beta):
            state = tile.dot(keys, part, a.keys, state, self.own.schedule.precision)
        return state

    def parts(self, written: Node, *factors: Node | None) -> list[Node]:
        """Written values times some factors as operands of a product: two where rounding once would cost too much."""
        if not self.own.split or (not self.own.delta and times(*factors) is None):
            return [scaled(written, *factors)]
        return halves(times(tile.cast(written, "float32"), *factors) or written, self.own.writes.half)

    def tensors(self, passed: bool = False) -> list[Tensor]:
        """What the walk reads; of ``passed`` states alone, factors in place of what they are made of."""
        w, own, factored = self.own.writes, self.own, passed and factors.read(self.own)
        found = [own.tensor(w.v, w.heads, w.cols), *(factors.tensors(own) if factored else own.betas())]
        found += units.tensors(own, w.k, w.heads) if own.delta else []
        sums = [own.sums] * (own.decays and not factored)
        return [*found, own.tensor(w.k, w.heads, w.rows), *sums] + [own.solved] * own.delta


def walk(builder: tile.Builder, own: Chunked, tile_number: Node, tiles: int, order: str = "") -> Walk:
    """The walk of one of ``tiles`` tiles of columns; the axes in ``order``, or in that of a walk forward."""
    made = axes(builder, own, order or usual_order(own))
    column = add(mul(tile_number, own.columns), tile.iota(made.columns))
    return Walk(own, made, column, tiles * own.columns)
