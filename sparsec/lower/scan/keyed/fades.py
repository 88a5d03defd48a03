"""Decays of a chunk per key channel, and its vectors.

Products of rows and columns are products of tiles, with decays counted from the middle of the chunk's: no exponent is
above half of what a channel fades by, which is safe down to 2^-200. Chunks that fade further are worked out again
column by column, where every exponent is that of a pair of tokens. Key dims go in tiles, which need fewer registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scalars import least as least_of
from sparsec.lower.scan.chunk import units
from sparsec.lower.scan.chunk.gates import log2_decay
from sparsec.lower.scan.chunk.operands import times
from sparsec.lower.scan.chunk.parts import CHUNKS, Chunk, Chunked, column_limit, power, power_of_two
from sparsec.lower.scan.keyed.sides import Keyed, Side
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor

DEEPEST = -200.0
"""Base-2 logarithm of what a channel may fade by in a chunk whose products are tiles."""


DIMS = 32
"""Key dims of a tile."""

GROUP = 8
"""Chunks that a program sees through for such as fade further: most find none, and starting is what they take."""


@dataclass(frozen=True, slots=True)
class Space:
    """The axes of a program that works on one chunk: its tokens as rows, key dims, its tokens as columns.

    Attributes:
        dim: indices of the key dims.
    """

    rows: Axis
    dims: Axis
    columns: Axis
    dim: Node

    def visible(self, strict: bool) -> Node:
        """Where a row sees a column."""
        return tile.apply(Fn.LT if strict else Fn.LE, tile.iota(self.columns), tile.iota(self.rows))


def over_dims(
    own: Chunked, axes: tuple[Axis, Axis, Axis], inits: Sequence[Node], body: Callable[..., Sequence[Node]]
) -> list[Node]:
    """What ``body(space, *carried)`` carries over the tiles of key dims; axes of rows, dims and columns."""
    rows, dims, columns = axes

    def visit(number: Node, *carried: Node) -> Sequence[Node]:
        return body(Space(rows, dims, columns, add(mul(number, dims.size), tile.iota(dims))), *carried)

    return tile.loop(0, power(own.writes.rows) // dims.size, 1, inits, visit)


def dims_of(own: Chunked) -> int:
    """Key dims of a tile."""
    return min(DIMS, power(own.writes.rows))


@dataclass(frozen=True, slots=True)
class Fades:
    """One chunk's decays and vectors, all ``[c,d]`` in fp32, decays as base-2 logarithms.

    Attributes:
        exact: whether the chunk may fade further than products of tiles bear.
    """

    keyed: Keyed
    chunk: Chunk
    at: Space
    exact: bool = False

    def steps(self, token: Node | None = None) -> Node:
        """Log-decays of all tokens, or of one."""
        w = self.keyed.own.writes
        if w.decay is None:
            return tile.full(0.0, *([self.at.rows] if token is None else []), self.at.dims)
        where = self.chunk.token(self.at.rows) if token is None else token
        if w.decay_kind == "key":
            return log2_decay(self._load(w.decay.name, w.decay.dtype, where))
        given = self.keyed.own.tensor(w.decay, w.heads)
        place, bounds = (self.chunk.batch, where, self.chunk.head), {1: tile.param(w.length)}
        one = log2_decay(tile.load(given, *place, bounds=dict(bounds)))
        return add(one, tile.full(0.0, *where.axes, self.at.dims))

    def _load(self, name: str, dtype: str, token: Node) -> Node:
        w = self.keyed.own.writes
        tensor = Tensor(name, dtype, ("B", w.length, w.heads, w.rows))
        bounds: dict[int, tile.Value] = {1: tile.param(w.length)}
        if limit := column_limit(w.rows, power(w.rows)):
            bounds[3] = limit
        return tile.load(tensor, self.chunk.batch, token, self.chunk.head, self.at.dim, bounds=bounds)

    def vectors(self, side: Side, token: Node | None = None) -> Node:
        """A side of all tokens, or of one."""
        where = self.chunk.token(self.at.rows) if token is None else token
        found = tile.cast(self._load(side.operand.name, side.operand.dtype, where), "float32")
        w = self.keyed.own.writes
        unit = units.factor(self.chunk, side.operand, w.heads, self.chunk.head, where)
        beta = self.chunk.beta_at(where) if side.weighted else None
        factor = times(unit, beta)
        found = found if factor is None else mul(found, factor)
        return found if side.factor == 1.0 else mul(found, side.factor)

    def sums(self) -> Node:
        """Γ."""
        return tile.scan(self.steps(), self.at.rows)

    def total(self) -> Node:
        """Γ_C ``[d]``."""
        return tile.reduce("sum", self.steps(), self.at.rows)

    def since(self, side: Side) -> Node:
        """The decays of a row: Γ, or Γ before the own token."""
        return sub(self.sums(), self.steps()) if side.shifted else self.sums()

    def kept(self, side: Side) -> Node:
        """What is left of a row since the start of the chunk."""
        if self.exact:
            return power_of_two(self.since(side))
        return mul(self.of_row(side), tile.apply(Fn.EXP2, self.middle()))

    def left(self) -> Node:
        """What is left of a column at the end of the chunk."""
        if self.exact:
            return power_of_two(sub(self.total(), self.sums()))
        return mul(self.of_column(), tile.apply(Fn.EXP2, self.middle()))

    def middle(self) -> Node:
        """Where decays of products are counted from, half of all ``[d]``."""
        return mul(self.total(), 0.5)

    def of_row(self, side: Side) -> Node:
        """What a row is multiplied with in products of tiles."""
        return tile.apply(Fn.EXP2, sub(self.since(side), self.middle()))

    def of_column(self) -> Node:
        """What a column is multiplied with."""
        return tile.apply(Fn.EXP2, sub(self.middle(), self.sums()))


def where_deep(keyed: Keyed, first: Chunk, axes: tuple[Axis, Axis], body: Callable[[Chunk], None]) -> None:
    """Run ``body`` on those of ``GROUP`` chunks in which some channel fades too far; axes of the group and of dims."""
    own, (group, dims) = keyed.own, axes
    numbers = add(first.number, tile.iota(group))

    def least(part: Node, found: Node) -> Sequence[Node]:
        at = add(mul(part, dims.size), tile.iota(dims))
        bounds: dict[int, tile.Value] = {2: tile.param(CHUNKS)}
        total = tile.load(keyed.totals, first.batch, first.head, numbers, at, bounds=bounds)
        known = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, total, total), total, 0.0)  # a NaN hides no other chunk
        return [tile.apply(Fn.MINIMUM, found, known)]

    parts, nothing = power(own.writes.rows) // dims.size, tile.full(0.0, group, dims)
    lowest = tile.reduce("min", tile.loop(0, parts, 1, [nothing], least)[0], dims)

    def visit(number: Node) -> Sequence[Node]:
        own_lowest = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, numbers, number), lowest, 0.0)
        tile.loop(number, add(number, _is_deep(tile.reduce("min", own_lowest, group))), 1, [], again)
        return []

    def again(number: Node) -> Sequence[Node]:
        body(Chunk(own, first.batch, first.head, number))
        return []

    end = least_of(add(first.number, GROUP), tile.param(CHUNKS))
    some = tile.apply(Fn.EQ, _is_deep(tile.reduce("min", lowest, group)), 1)
    tile.loop(first.number, tile.apply(Fn.WHERE, some, end, first.number), 1, [], visit)


def _is_deep(lowest: Node) -> Node:
    """1 where something fades too far, else 0."""
    return tile.apply(Fn.WHERE, tile.apply(Fn.LT, lowest, DEEPEST), tile.const(1), tile.const(0))
