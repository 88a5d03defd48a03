"""Rows of new tokens that share a head's memory: what they read of it, and of the state of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower import softmax
from sparsec.lower.decode.held import Held, row_of, version, within
from sparsec.lower.pieces import Span
from sparsec.lower.scalars import add, both, ceil_div, mul, sub
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows m (tokens x heads of a group), some keys n, dims d, columns e, features f; ``length`` is before them."""

    held: Held
    m: Axis
    n: Axis
    d: Axis
    e: Axis
    f: Axis
    length: Node

    @property
    def head(self) -> Node:
        """The head that keys have."""
        return tile.program_id(1)

    @property
    def at(self) -> tuple[Node, Node, Node]:
        """Batch, version and head of table and state."""
        return tile.program_id(2), version(self.held.taken(self.length)), self.head

    @property
    def number(self) -> Node:
        """Numbers of the rows."""
        return add(mul(tile.program_id(0), self.m.size), tile.iota(self.m))

    @property
    def token(self) -> Node:
        """The new token of a row."""
        return tile.apply(Fn.TRUNCDIV, self.number, self.held.heads // self.held.groups)

    def place(self) -> tuple[Node, Node, Node]:
        """Batch, token and head of rows."""
        group = self.held.heads // self.held.groups
        return tile.program_id(2), self.token, add(mul(self.head, group), tile.apply(Fn.TRUNCMOD, self.number, group))

    def asked(self, part: str, axis: Axis, column: Node | int = 0) -> Node:
        """Queries, or their features."""
        bounds: dict[int, tile.Value] = {1: tile.param("TQ"), **within(self.held.width(part), axis)}
        return tile.load(self.held.tokens(part), *self.place(), add(column, tile.iota(axis)), bounds=bounds)

    def row(self, tensor: Tensor, row: Node, axis: Axis, limit: tile.Value) -> Node:
        """Rows ``[n, ·]`` of memory or of new tokens, zeros from the limit on."""
        width = tensor.shape[3]
        assert isinstance(width, int)
        place = (tile.program_id(2), row, self.head, tile.iota(axis))
        return tile.load(tensor, *place, bounds={1: limit, **within(width, axis)})

    def softmax(self) -> list[Node]:
        """The state of the softmax after what is held and the new tokens."""
        q, values = self.asked("q", self.d), [Span(0, self.e)]

        def attend(
            state: Sequence[Node], tensors: tuple[Tensor, Tensor], row: Node, seen: Node, limit: tile.Value
        ) -> list[Node]:
            scores = tile.dot(q, self.row(tensors[0], row, self.d, limit), self.d)
            scores = tile.apply(Fn.WHERE, seen, scores, softmax.HIDDEN)
            scale, v = self.held.scale * softmax.LOG2E, self.row(tensors[1], row, self.e, limit)
            return softmax.step(state, scores, scale, self.n, lambda _: v, values, "ieee")

        def cached(number: Node, *now: Node) -> Sequence[Node]:
            entry = self.keys(number)
            seen = self.seen(entry)
            row = row_of(self.held, self.at, entry, seen)
            return attend(now, (self.held.memory("k"), self.held.memory("v")), row, seen, self.held.rows)

        def own(number: Node, *now: Node) -> Sequence[Node]:
            token, count = self.keys(number), tile.param("TQ")
            seen = both(tile.apply(Fn.LT, token, count), tile.apply(Fn.LE, token, self.token))
            return attend(now, (self.held.tokens("k"), self.held.tokens("v")), token, seen, count)

        state = tile.loop(0, -(-self.held.rows // self.n.size), 1, softmax.start([self.m], values), cached)
        return tile.loop(0, ceil_div(tile.param("TQ"), self.n.size), 1, list(state), own)

    def keys(self, number: Node) -> Node:
        """Numbers of some keys."""
        return add(mul(number, self.n.size), tile.iota(self.n))

    def seen(self, entry: Node) -> Node:
        """Whether entries of the table hold a pair: in the cache, or in the ring since the window begins."""
        held = self.held
        round_ = mul(tile.apply(Fn.TRUNCDIV, self.length, held.ring), held.ring)
        token = add(round_, sub(entry, held.keep))
        token = sub(token, tile.apply(Fn.WHERE, tile.apply(Fn.LT, token, self.length), 0, held.ring))
        first = mul(held.taken(self.length), held.size)
        near = both(tile.apply(Fn.LE, first, token), tile.apply(Fn.LT, entry, held.rows))
        cached = tile.apply(Fn.LT, entry, held.cached(held.taken(self.length)))
        return tile.apply(Fn.WHERE, tile.apply(Fn.LT, entry, held.keep), cached, near)

    def recalled(self) -> tuple[Node, Node]:
        """Mᵀφ(q) [m, e] and zᵀφ(q) [m]."""
        held = self.held

        def block(number: Node, sums: Node, weight: Node) -> Sequence[Node]:
            column = mul(number, self.f.size)
            place = (*self.at, add(column, tile.iota(self.f)))
            fq = tile.cast(self.asked("fq", self.f, column), "float32")
            bounds = within(held.features, self.f)
            mass = tile.load(held.mass(), *place, bounds=bounds)
            state = tile.load(held.state(), *place, tile.iota(self.e), bounds=bounds | within(held.cols, self.e, 4))
            return [tile.dot(fq, state, self.f, sums), add(weight, tile.reduce("sum", mul(fq, mass), self.f))]

        nothing = [tile.full(0.0, self.m, self.e), tile.full(0.0, self.m)]
        sums, weight = tile.loop(0, -(-held.features // self.f.size), 1, nothing, block)
        return sums, weight
