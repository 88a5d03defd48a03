"""A complete chunk joins a cache that evicts, where a sequence's next token begins one: decided on the device.

One program per head: it ranks the pairs of the cache and of the chunk by what the state recalls wrong, names those that
stay, and writes the others to the state, some columns at a time. Else it only counts the new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsec.lower.decode.held import Held, columns, row_of, version, within
from sparsec.lower.decode.pages import ENDS, LENGTHS
from sparsec.lower.scalars import add, both, most, mul, sub
from sparsec.lower.scan.cell import padded
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import EMPTY_KEY, Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule

LAST = 2**24
"""Added to the number of a candidate that is none, so that it comes after those that are."""


@dataclass(frozen=True, slots=True)
class _Chunk:
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

    def staying(self) -> Node:
        """The numbers [k] of the candidates that the state recalls worst; room stays where pairs are too few."""
        mass = self.mass()

        def rank(number: Node, best: Node) -> Sequence[Node]:
            there = self.pair(number)
            row = self.row(number, there)
            fk = self.load("fk", row, self.d)
            weight = tile.reduce("sum", mul(fk, mass), self.d)
            some = tile.apply(Fn.NE, weight, 0.0)
            safe = tile.apply(Fn.WHERE, some, weight, 1.0)

            def block(column: Node, error: Node) -> Sequence[Node]:
                known = tile.apply(Fn.DIV, tile.dot(fk, self.state(column), self.d), safe)
                missing = sub(tile.apply(Fn.WHERE, some, known, 0.0), self.load("v", row, self.e, column))
                return [add(error, tile.reduce("sum", mul(missing, missing), self.e))]

            (error,) = self.blocks([tile.full(0.0, self.m)], block)
            key = tile.apply(Fn.RANK, tile.apply(Fn.WHERE, there, error, -1.0), number)
            key = tile.apply(Fn.WHERE, tile.apply(Fn.LT, number, self.count), key, EMPTY_KEY)
            return [tile.top_insert(best, key, self.k, self.m)]

        (best,) = self.over([tile.full(EMPTY_KEY, self.k, dtype="int64")], rank)
        best = tile.apply(Fn.WHERE, tile.apply(Fn.LT, tile.iota(self.k), self.held.keep), best, EMPTY_KEY)
        return tile.apply(Fn.RANK_ID, best)

    def name_cached(self, staying: Node) -> None:
        """Entries of those that stay, by token, room last."""
        some = tile.apply(Fn.LE, 0, staying)
        order = add(staying, tile.apply(Fn.WHERE, self.pair(staying), 0, LAST))
        order = tile.apply(Fn.WHERE, some, order, add(mul(2, LAST), tile.iota(self.k)))
        less = tile.apply(Fn.LT, tile.rename(order, self.k, self.j), order)
        place = tile.reduce("sum", tile.apply(Fn.WHERE, less, 1, 0), self.j)
        row = self.row(tile.apply(Fn.WHERE, some, staying, 0), some)
        self.name(tile.apply(Fn.WHERE, some, place, self.held.rows), row)

    def name(self, entry: Node, row: Node) -> None:
        """Which rows entries are; none of an entry past the last."""
        table = self.held.table("next_table")
        tile.store(table, *self.after, entry, value=sub(row, entry), bounds={3: self.held.rows})

    def gone(self, number: Node, staying: Node) -> Node:
        """Whether candidates stay no longer."""
        same = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, number, staying), 1, 0)
        left = tile.apply(Fn.EQ, tile.reduce("max", same, self.k), 0)
        return both(left, tile.apply(Fn.LT, number, self.count))

    def give(self, staying: Node) -> None:
        """Write pairs that do not stay to M, some columns at a time."""

        def block(column: Node) -> Sequence[Node]:
            def visit(number: Node, state: Node) -> Sequence[Node]:
                row = self.row(number, both(self.gone(number, staying), self.pair(number)))
                return [tile.dot(self.load("fk", row, self.d), self.load("v", row, self.e, column), self.m, state)]

            (state,) = self.over([self.state(column)], visit)
            bounds = {**within(self.held.features, self.d), **within(self.held.cols, self.e, 4)}
            place = (*self.after, tile.iota(self.d), add(column, tile.iota(self.e)))
            tile.store(self.held.state("next_m"), *place, value=state, bounds=bounds)
            return []

        self.blocks([], block)

    def free(self, staying: Node) -> None:
        """Write pairs that do not stay to z; their rows are room for the tokens that come."""

        def visit(number: Node, mass: Node) -> Sequence[Node]:
            gone, there = self.gone(number, staying), self.pair(number)
            some = both(tile.apply(Fn.LE, 0, staying), tile.apply(Fn.LT, staying, number))
            before = tile.reduce("sum", tile.apply(Fn.WHERE, some, 1, 0), self.k)
            entry = add(self.held.keep, add(self.base, sub(number, before)))
            self.name(tile.apply(Fn.WHERE, gone, entry, self.held.rows), self.row(number, gone))
            fk = self.load("fk", self.row(number, both(gone, there)), self.d)
            return [add(mass, tile.reduce("sum", fk, self.m))]

        (mass,) = self.over([self.mass()], visit)
        bounds = within(self.held.features, self.d)
        tile.store(self.held.mass("next_z"), *self.after, tile.iota(self.d), value=mass, bounds=bounds)

    def others(self) -> None:
        """Entries of the ring's other chunks are what they were."""

        def visit(number: Node) -> Sequence[Node]:
            entry = add(self.held.keep, self.candidates(number))
            first = add(self.held.keep, self.base)
            own = both(tile.apply(Fn.LE, first, entry), tile.apply(Fn.LT, entry, add(first, self.held.size)))
            there = both(tile.apply(Fn.LT, entry, self.held.rows), tile.apply(Fn.NOT, own))
            self.name(tile.apply(Fn.WHERE, there, entry, self.held.rows), row_of(self.held, self.at, entry, there))
            return []

        tile.loop(0, -(-self.held.ring // self.m.size), 1, [], visit)


def lower(held: Held, schedule: Schedule) -> Program:
    """One (head, sequence) per grid point; the first head counts the new tokens."""
    with tile.Builder() as builder:
        lengths, ends = (Tensor(name, "int32", ("B",)) for name in (LENGTHS, ENDS))
        length = tile.load(lengths, tile.program_id(1))
        first = tile.apply(Fn.EQ, tile.program_id(0), 0)
        limit = tile.apply(Fn.WHERE, first, tile.param("B"), 0)
        tile.store(ends, tile.program_id(1), value=add(length, tile.param("TQ")), bounds={0: limit})
        one, other = (builder.axis(name, padded(held.keep)) for name in ("k", "j"))
        wide = columns(builder, "d", held.features, schedule)
        narrow = columns(builder, "e", held.cols, schedule, schedule.value_block)
        taken = most(sub(held.taken(length), 1), 0)
        base = tile.apply(Fn.TRUNCMOD, length, held.ring)
        chunk = _Chunk(held, builder.axis("m", schedule.rows), one, other, wide, narrow, taken, base)
        begins = tile.apply(Fn.EQ, tile.apply(Fn.TRUNCMOD, length, held.size), 0)
        due = both(begins, tile.apply(Fn.LE, held.ring, length))

        def take_in(_: Node) -> Sequence[Node]:
            staying = chunk.staying()
            chunk.name_cached(staying)
            chunk.give(staying)
            chunk.free(staying)
            chunk.others()
            return []

        tile.loop(0, tile.apply(Fn.WHERE, due, 1, 0), 1, [], take_in)
        read = [lengths, held.memory("fk"), held.memory("v"), held.table(), held.state(), held.mass()]
        made = [ends, held.table("next_table"), held.state("next_m"), held.mass("next_z")]
        params = [(name, "int32") for name in ("B", "TQ")]
        return builder.program("take_in", [*read, *made], params, (tile.const(held.groups), tile.param("B")))


def default(held: Held, target: str) -> Schedule:
    """Few columns at a time: a product in fp32 has its operands in registers."""
    if target.startswith("triton"):
        return Schedule(rows=16, value_block=32, warps=8, stages=1)
    return Schedule(rows=16, value_block=32, lanes=("e", "d", "k"), split_dims=target == "interpreter")
