"""A cache of fixed size that gives pairs up for a linear state: one program per head walks over the chunks.

The state and which pairs are held stay in registers. A chunk takes two passes over those that are held and its own,
a few at a time: one ranks them by what the state recalls wrong, one writes to it those that do not stay. Queries of the
chunk from which on it is behind the window are answered then, in time that is linear in the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsec.lower.scalars import add, both, ceil_div, most, mul, sub
from sparsec.lower.scan.cell import padded
from sparsec.plan.states.evict_specs import NEVER, Evict, LinearRead
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import EMPTY_KEY, Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule

Visit = Callable[..., Sequence[Node]]


@dataclass(frozen=True, slots=True)
class _Head:
    """One head: some candidates m, slots k of the cache, dims d and columns e."""

    spec: Evict
    m: Axis
    k: Axis
    d: Axis
    e: Axis

    @property
    def length(self) -> Node:
        """The number of tokens."""
        return tile.param(self.spec.length)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """k, v and the result."""
        s = self.spec
        k = Tensor(s.k, s.k_dtype, ("B", s.length, s.heads, s.dim))
        v = Tensor(s.v, s.v_dtype, ("B", s.length, s.heads, s.cols))
        return k, v, Tensor(s.left, "int32", ("B", s.length, s.heads))

    def row(self, tensor: Tensor, token: Node, column: Axis, width: int) -> Node:
        """Rows [m, column] in fp32, zeros past the last token."""
        limits: dict[int, tile.Value] = {1: self.length} | ({3: width} if column.size != width else {})
        place = (tile.program_id(1), token, tile.program_id(0), tile.iota(column))
        return tile.cast(tile.load(tensor, *place, bounds=limits), "float32")

    def pair(self, token: Node) -> tuple[Node, Node]:
        """Keys [m,d] and values [m,e]."""
        k, v, _ = self.tensors()
        return self.row(k, token, self.d, self.spec.dim), self.row(v, token, self.e, self.spec.cols)

    def leave(self, token: Node, chunk: Node | int) -> None:
        """Note that tokens are given up after a chunk."""
        value = tile.cast(add(mul(tile.apply(Fn.MINIMUM, token, 0), 0), chunk), "int32")
        place = (tile.program_id(1), token, tile.program_id(0))
        tile.store(self.tensors()[2], *place, value=value, bounds={1: self.length})

    def each(self, held: Node, chunk: Node, carried: Sequence[Node], visit: Visit) -> list[Node]:
        """Over those that are held, then over the chunk's own: ``visit(tokens [m], *carried)``, none is the length."""
        size = self.m.size
        count = tile.apply(Fn.TRUNCDIV, self.length, self.spec.size)
        complete = both(tile.apply(Fn.LE, 0, chunk), tile.apply(Fn.LT, chunk, count))

        def cached(number: Node, *now: Node) -> Sequence[Node]:
            slot = add(mul(number, size), tile.iota(self.m))
            same = tile.apply(Fn.EQ, slot, tile.iota(self.k))
            token = tile.reduce("max", tile.apply(Fn.WHERE, same, held, -1), self.k)
            return visit(self.some(token, tile.apply(Fn.LE, 0, token)), *now)

        def own(number: Node, *now: Node) -> Sequence[Node]:
            place = add(mul(number, size), tile.iota(self.m))
            token = add(mul(chunk, self.spec.size), place)
            return visit(self.some(token, both(tile.apply(Fn.LT, place, self.spec.size), complete)), *now)

        found = tile.loop(0, -(-self.spec.keep // size), 1, list(carried), cached)
        return list(tile.loop(0, -(-self.spec.size // size), 1, list(found), own))

    def some(self, token: Node, there: Node) -> Node:
        """Tokens where they are there, else the length."""
        return tile.apply(Fn.WHERE, there, token, self.length)

    def ranked(self, token: Node, state: Node, mass: Node) -> Node:
        """int64 keys [m] by what the state recalls wrong."""
        k, v = self.pair(token)
        missing = sub(self.recalled(k, state, mass)[0], v)
        key = tile.apply(Fn.RANK, tile.reduce("sum", mul(missing, missing), self.e), token)
        return tile.apply(Fn.WHERE, tile.apply(Fn.LT, token, self.length), key, EMPTY_KEY)

    def recalled(self, x: Node, state: Node, mass: Node) -> tuple[Node, Node]:
        """Mᵀx / zᵀx [m,e], 0 of a state that holds nothing, and zᵀx [m]."""
        weight = tile.reduce("sum", mul(x, mass), self.d)
        some = tile.apply(Fn.NE, weight, 0.0)
        known = tile.apply(Fn.DIV, tile.dot(x, state, self.d), tile.apply(Fn.WHERE, some, weight, 1.0))
        return tile.apply(Fn.WHERE, some, known, 0.0), weight

    def chunk(self, number: Node, keys: Node, state: Node, mass: Node) -> Sequence[Node]:
        """What is held, and the state, after the chunk before ``number`` by as many as reads lag behind."""
        read = self.spec.read
        gone = number if read is None else sub(number, read.lag + 1)
        held = tile.apply(Fn.RANK_ID, keys)

        def rank(token: Node, best: Node) -> Sequence[Node]:
            return [tile.top_insert(best, self.ranked(token, state, mass), self.k, self.m)]

        (best,) = self.each(held, gone, [tile.full(EMPTY_KEY, self.k, dtype="int64")], rank)
        best = tile.apply(Fn.WHERE, tile.apply(Fn.LT, tile.iota(self.k), self.spec.keep), best, EMPTY_KEY)
        staying = tile.apply(Fn.RANK_ID, best)

        def give(token: Node, state: Node, mass: Node) -> Sequence[Node]:
            same = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, token, staying), 1, 0)
            left = self.some(token, tile.apply(Fn.EQ, tile.reduce("max", same, self.k), 0))
            self.leave(left, gone)
            k, v = self.pair(left)
            return [tile.dot(k, v, self.m, state), add(mass, tile.reduce("sum", k, self.m))]

        state, mass = self.each(held, gone, [state, mass], give)
        if read is not None:
            self.answer(read, number, state, mass)
        return [best, state, mass]

    def answer(self, read: LinearRead, chunk: Node, state: Node, mass: Node) -> None:
        """What the queries of a chunk read of the state."""
        s, size, group = self.spec, self.m.size, read.heads // self.spec.heads
        asked, out, lse = self.answers(read)

        def visit(number: Node) -> Sequence[Node]:
            head = add(mul(tile.program_id(0), group), tile.apply(Fn.TRUNCMOD, number, group))
            place = add(mul(tile.apply(Fn.TRUNCDIV, number, group), size), tile.iota(self.m))
            row = sub(add(mul(chunk, s.size), place), tile.param("q_offset"))
            row = self.some(row, both(tile.apply(Fn.LT, place, s.size), tile.apply(Fn.LE, 0, row)))
            at, limits = (tile.program_id(1), row, head), {1: self.length}
            wide = [{3: n} if axis.size != n else {} for axis, n in ((self.d, s.dim), (self.e, s.cols))]
            q = tile.cast(tile.load(asked, *at, tile.iota(self.d), bounds={**limits, **wide[0]}), "float32")
            known, weight = self.recalled(q, state, mass)
            some = tile.apply(Fn.LT, 0.0, weight)
            total = tile.apply(Fn.LOG, tile.apply(Fn.WHERE, some, weight, 1.0))
            total = tile.apply(Fn.WHERE, some, total, tile.const(-math.inf))
            value = tile.cast(known, out.dtype)
            tile.store(out, *at, tile.iota(self.e), value=value, bounds={**limits, **wide[1]})
            tile.store(lse, *at, value=total, bounds=dict(limits))
            return []

        tile.loop(0, group * -(-s.size // size), 1, [], visit)

    def answers(self, read: LinearRead) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, and what they are answered."""
        lead = ("B", self.spec.length, read.heads)
        return (
            Tensor(read.q, read.q_dtype, (*lead, self.spec.dim)),
            Tensor(read.out, read.out_dtype, (*lead, self.spec.cols)),
            Tensor(read.lse, "float32", lead),
        )


def lower(spec: Evict, schedule: Schedule) -> Program:
    """One (head, batch) per grid point."""
    with tile.Builder() as builder:
        dim, cols = (padded(n) if schedule.split_dims else n for n in (spec.dim, spec.cols))
        slots = builder.axis("k", padded(spec.keep))
        wide = builder.axis("d", dim), builder.axis("e", cols)  # before m: M is a left operand
        head = _Head(spec, builder.axis("m", schedule.rows), slots, *wide)
        count = tile.apply(Fn.TRUNCDIV, head.length, spec.size)
        nothing = [tile.full(EMPTY_KEY, slots, dtype="int64"), tile.full(0.0, head.d, head.e), tile.full(0.0, head.d)]
        keys, *_ = tile.loop(0, _chunks(head, count), 1, nothing, head.chunk)
        held = tile.apply(Fn.RANK_ID, keys)
        head.leave(head.some(held, tile.apply(Fn.LE, 0, held)), NEVER)

        def rest(number: Node) -> Sequence[Node]:
            place = add(mul(number, schedule.rows), tile.iota(head.m))
            head.leave(add(mul(count, spec.size), place), NEVER)
            return []

        tile.loop(0, ceil_div(sub(head.length, mul(count, spec.size)), schedule.rows), 1, [], rest)
        tensors = [*head.tensors(), *(() if spec.read is None else head.answers(spec.read))]
        params = [(name, "int32") for name in dict.fromkeys(["B", "TQ", "TK", "q_offset", spec.length])]
        return builder.program(spec.name, tensors, params, (tile.const(spec.heads), tile.param("B")))


def _chunks(head: _Head, count: Node) -> Node:
    """Chunks of the walk: all complete ones are met, and all that queries lie in."""
    if head.spec.read is None:
        return count
    end = ceil_div(add(head.length, tile.param("q_offset")), head.spec.size)
    return most(add(count, head.spec.read.lag + 1), end)


def default(spec: Evict, target: str) -> Schedule:
    """Sixteen candidates at a time, and warps that have room for the state; a CPU takes four candidates."""
    if target.startswith("triton"):
        return Schedule(rows=16, warps=8, stages=1)
    return Schedule(rows=4, lanes=("e", "d", "k"), split_dims=False)


def space(spec: Evict, target: str) -> dict[str, tuple[object, ...]]:
    """Candidates at a time, and warps."""
    if target.startswith("triton"):
        return {"rows": (16, 32, 64), "warps": (2, 4, 8)}
    return {"rows": (1, 4, 16)}
