"""A chunk that joins a cache that evicts: the candidates of a take-in, where they lie, and loops over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsec.lower.decode.held import Held, row_of, version, within
from sparsec.lower.scalars import add, both, mul
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some candidates m, slots k and j of the cache, features d and columns e; ``base`` is the chunk's first entry."""

    held: Held
    m: Axis
    k: Axis
    j: Axis
    d: Axis
    e: Axis
    taken: Node
    base: Node

    @property
    def at(self) -> tuple[Node, Node, Node]:
        """Batch, version and head of what was."""
        return tile.program_id(1), version(self.taken), tile.program_id(0)

    @property
    def after(self) -> tuple[Node, Node, Node]:
        """Batch, version and head of what is then."""
        return tile.program_id(1), version(add(self.taken, 1)), tile.program_id(0)

    @property
    def count(self) -> int:
        """Entries that may be candidates."""
        return self.held.keep + self.held.size

    def candidates(self, number: Node) -> Node:
        """Numbers of some: entries of the cache, then tokens of the chunk."""
        return add(mul(number, self.m.size), tile.iota(self.m))

    def pair(self, number: Node) -> Node:
        """Whether candidates are pairs, and not room for them."""
        cached = tile.apply(Fn.LT, number, self.held.cached(self.taken))
        own = both(tile.apply(Fn.LE, self.held.keep, number), tile.apply(Fn.LT, number, self.count))
        return tile.apply(Fn.OR, cached, own)

    def row(self, number: Node, there: Node) -> Node:
        """The rows of candidates."""
        entry = add(number, tile.apply(Fn.WHERE, tile.apply(Fn.LT, number, self.held.keep), 0, self.base))
        return row_of(self.held, self.at, entry, there)

    def load(self, part: str, row: Node, axis: Axis, column: Node | int = 0) -> Node:
        """Rows in fp32, zeros of those that are not there."""
        tensor = self.held.memory(part)
        bounds: dict[int, tile.Value] = {1: self.held.rows, **within(self.held.width(part), axis)}
        place = (tile.program_id(1), row, tile.program_id(0), add(column, tile.iota(axis)))
        return tile.cast(tile.load(tensor, *place, bounds=bounds), "float32")

    def state(self, column: Node) -> Node:
        """Some columns of M [d, e]."""
        bounds = {**within(self.held.features, self.d), **within(self.held.cols, self.e, 4)}
        place = (*self.at, tile.iota(self.d), add(column, tile.iota(self.e)))
        return tile.load(self.held.state(), *place, bounds=bounds)

    def mass(self) -> Node:
        """z [d]."""
        bounds = within(self.held.features, self.d)
        return tile.load(self.held.mass(), *self.at, tile.iota(self.d), bounds=bounds)

    def blocks(self, carried: Sequence[Node], visit: Callable[..., Sequence[Node]]) -> list[Node]:
        """Over columns, some at a time: ``visit(first column, *carried)``."""

        def block(number: Node, *now: Node) -> Sequence[Node]:
            return visit(mul(number, self.e.size), *now)

        return list(tile.loop(0, -(-self.held.cols // self.e.size), 1, list(carried), block))

    def over(self, carried: Sequence[Node], visit: Callable[..., Sequence[Node]]) -> list[Node]:
        """Over candidates, some at a time: ``visit(numbers [m], *carried)``."""

        def some(number: Node, *now: Node) -> Sequence[Node]:
            return visit(self.candidates(number), *now)

        return list(tile.loop(0, -(-self.count // self.m.size), 1, list(carried), some))
