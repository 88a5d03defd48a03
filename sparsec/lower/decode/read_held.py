"""New tokens of LoLA: softmax over what is held and over themselves, and the state of the others, one normaliser.

Programs share rows of one head's memory; the first of them adds the new rows to it, where nothing is read that is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower import softmax
from sparsec.lower.decode.held import Held, columns, row_of, version, within
from sparsec.lower.decode.pages import ENDS, LENGTHS
from sparsec.lower.pieces import Span
from sparsec.lower.scalars import add, both, ceil_div, most, mul, sub
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class _Rows:
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

    def answer(self) -> None:
        """Both under one normaliser."""
        exact, top, total = self.softmax()
        sums, weight = self.recalled()
        some = tile.apply(Fn.LT, 0.0, weight)
        safe = tile.apply(Fn.WHERE, some, weight, 1.0)
        height = tile.apply(Fn.WHERE, some, tile.apply(Fn.LOG2, safe), top)
        level = most(top, height)
        keep = tile.apply(Fn.EXP2, sub(top, level))
        share = tile.apply(Fn.WHERE, some, tile.apply(Fn.EXP2, sub(height, level)), 0.0)
        both_ = add(mul(exact, keep), mul(sums, tile.apply(Fn.DIV, share, safe)))
        out = self.held.tokens("out")
        value = tile.cast(tile.apply(Fn.DIV, both_, add(mul(total, keep), share)), out.dtype)
        bounds: dict[int, tile.Value] = {1: tile.param("TQ"), **within(self.held.cols, self.e)}
        tile.store(out, *self.place(), tile.iota(self.e), value=value, bounds=bounds)

    def keep(self, axes: Sequence[tuple[str, Axis]]) -> None:
        """New rows join memory, in the first program of a head."""
        first, count = tile.apply(Fn.EQ, tile.program_id(0), 0), tile.param("TQ")
        limit = tile.apply(Fn.WHERE, first, count, 0)

        def some(number: Node) -> Sequence[Node]:
            token = self.keys(number)
            entry = add(self.held.keep, tile.apply(Fn.TRUNCMOD, add(self.length, token), self.held.ring))
            row = row_of(self.held, self.at, entry, tile.apply(Fn.LT, token, limit))
            for part, axis in axes:
                value = self.row(self.held.tokens(part), token, axis, limit)
                bounds: dict[int, tile.Value] = {1: self.held.rows, **within(self.held.width(part), axis)}
                place = (tile.program_id(2), row, self.head, tile.iota(axis))
                tile.store(self.held.memory(part, "next"), *place, value=value, bounds=bounds)
            return []

        tile.loop(0, ceil_div(limit, self.n.size), 1, [], some)


def lower(held: Held, schedule: Schedule) -> Program:
    """One (rows, head, sequence) per grid point; the first one of a sequence says how long it is now."""
    with tile.Builder() as builder:
        lengths, ends = (Tensor(name, "int32", ("B",)) for name in (LENGTHS, ENDS))
        batch = tile.program_id(2)
        end = tile.load(ends, batch)
        first = both(tile.apply(Fn.EQ, tile.program_id(0), 0), tile.apply(Fn.EQ, tile.program_id(1), 0))
        tile.store(lengths, batch, value=add(end, 0), bounds={0: tile.apply(Fn.WHERE, first, tile.param("B"), 0)})
        wide = columns(builder, "d", held.dim, schedule), columns(builder, "e", held.cols, schedule)
        features = columns(builder, "f", held.features, schedule, schedule.value_block)
        some = builder.axis("m", schedule.rows), builder.axis("n", schedule.block)
        rows = _Rows(held, *some, *wide, features, sub(end, tile.param("TQ")))
        rows.answer()
        whole = columns(builder, "g", held.features, schedule)
        rows.keep([("k", wide[0]), ("v", wide[1]), ("fk", whole)])
        read = [held.tokens(part) for part, _ in held.dtypes] + [held.memory(part) for part in ("k", "v")]
        made = [held.memory(part, "next") for part in ("k", "v", "fk")]
        known = [ends, held.table(), held.state(), held.mass()]
        params = [(name, "int32") for name in ("B", "TQ")]
        grid = ceil_div(mul(tile.param("TQ"), held.heads // held.groups), schedule.rows), tile.const(held.groups)
        tensors = [*read, *known, *made, held.tokens("out"), lengths]
        return builder.program("read_held", tensors, params, (*grid, tile.param("B")))


def default(held: Held, target: str, tokens: int) -> Schedule:
    """A step has few rows, a chunk more; so many that their products with the state, in fp32, fit into registers."""
    few = tokens * held.heads // held.groups <= 16
    rows = 16 if few else 64
    if target.startswith("triton"):
        return Schedule(rows=rows, block=64, value_block=32 if few else 16, warps=4 if few else 8, stages=2)
    return Schedule(rows=rows, block=32, value_block=32, lanes=("e", "n", "d"), split_dims=target == "interpreter")
