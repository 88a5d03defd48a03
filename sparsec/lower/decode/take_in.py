"""A complete chunk joins a cache that evicts, where a sequence's next token begins one: decided on the device.

One program per head: it ranks the pairs of the cache and of the chunk by what the state recalls wrong, names those that
stay, and writes the others to the state, some columns at a time. Else it only counts the new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.decode.held import Held, columns, row_of, within
from sparsec.lower.decode.held_chunk import Chunk
from sparsec.lower.decode.pages import ENDS, LENGTHS
from sparsec.lower.scalars import add, both, most, mul, sub
from sparsec.lower.scan.cell import padded
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import EMPTY_KEY, Node, Program, Tensor
from sparsec.tile.schedule import Schedule

LAST = 2**24
"""Added to the number of a candidate that is none, so that it comes after those that are."""


def _staying(chunk: Chunk) -> Node:
    """The numbers [k] of the candidates that the state recalls worst; room stays where pairs are too few."""
    mass = chunk.mass()

    def rank(number: Node, best: Node) -> Sequence[Node]:
        there = chunk.pair(number)
        row = chunk.row(number, there)
        fk = chunk.load("fk", row, chunk.d)
        weight = tile.reduce("sum", mul(fk, mass), chunk.d)
        some = tile.apply(Fn.NE, weight, 0.0)
        safe = tile.apply(Fn.WHERE, some, weight, 1.0)

        def block(column: Node, error: Node) -> Sequence[Node]:
            known = tile.apply(Fn.DIV, tile.dot(fk, chunk.state(column), chunk.d), safe)
            missing = sub(tile.apply(Fn.WHERE, some, known, 0.0), chunk.load("v", row, chunk.e, column))
            return [add(error, tile.reduce("sum", mul(missing, missing), chunk.e))]

        (error,) = chunk.blocks([tile.full(0.0, chunk.m)], block)
        key = tile.apply(Fn.RANK, tile.apply(Fn.WHERE, there, error, -1.0), number)
        key = tile.apply(Fn.WHERE, tile.apply(Fn.LT, number, chunk.count), key, EMPTY_KEY)
        return [tile.top_insert(best, key, chunk.k, chunk.m)]

    (best,) = chunk.over([tile.full(EMPTY_KEY, chunk.k, dtype="int64")], rank)
    best = tile.apply(Fn.WHERE, tile.apply(Fn.LT, tile.iota(chunk.k), chunk.held.keep), best, EMPTY_KEY)
    return tile.apply(Fn.RANK_ID, best)


def _name_cached(chunk: Chunk, staying: Node) -> None:
    """Entries of those that stay, by token, room last."""
    some = tile.apply(Fn.LE, 0, staying)
    order = add(staying, tile.apply(Fn.WHERE, chunk.pair(staying), 0, LAST))
    order = tile.apply(Fn.WHERE, some, order, add(mul(2, LAST), tile.iota(chunk.k)))
    less = tile.apply(Fn.LT, tile.rename(order, chunk.k, chunk.j), order)
    place = tile.reduce("sum", tile.apply(Fn.WHERE, less, 1, 0), chunk.j)
    row = chunk.row(tile.apply(Fn.WHERE, some, staying, 0), some)
    _name(chunk, tile.apply(Fn.WHERE, some, place, chunk.held.rows), row)


def _name(chunk: Chunk, entry: Node, row: Node) -> None:
    """Which rows entries are; none of an entry past the last."""
    table = chunk.held.table("next_table")
    tile.store(table, *chunk.after, entry, value=sub(row, entry), bounds={3: chunk.held.rows})


def _gone(chunk: Chunk, number: Node, staying: Node) -> Node:
    """Whether candidates stay no longer."""
    same = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, number, staying), 1, 0)
    left = tile.apply(Fn.EQ, tile.reduce("max", same, chunk.k), 0)
    return both(left, tile.apply(Fn.LT, number, chunk.count))


def _give(chunk: Chunk, staying: Node) -> None:
    """Write pairs that do not stay to M, some columns at a time."""

    def block(column: Node) -> Sequence[Node]:
        def visit(number: Node, state: Node) -> Sequence[Node]:
            row = chunk.row(number, both(_gone(chunk, number, staying), chunk.pair(number)))
            return [tile.dot(chunk.load("fk", row, chunk.d), chunk.load("v", row, chunk.e, column), chunk.m, state)]

        (state,) = chunk.over([chunk.state(column)], visit)
        bounds = {**within(chunk.held.features, chunk.d), **within(chunk.held.cols, chunk.e, 4)}
        place = (*chunk.after, tile.iota(chunk.d), add(column, tile.iota(chunk.e)))
        tile.store(chunk.held.state("next_m"), *place, value=state, bounds=bounds)
        return []

    chunk.blocks([], block)


def _free(chunk: Chunk, staying: Node) -> None:
    """Write pairs that do not stay to z; their rows are room for the tokens that come."""

    def visit(number: Node, mass: Node) -> Sequence[Node]:
        gone, there = _gone(chunk, number, staying), chunk.pair(number)
        some = both(tile.apply(Fn.LE, 0, staying), tile.apply(Fn.LT, staying, number))
        before = tile.reduce("sum", tile.apply(Fn.WHERE, some, 1, 0), chunk.k)
        entry = add(chunk.held.keep, add(chunk.base, sub(number, before)))
        _name(chunk, tile.apply(Fn.WHERE, gone, entry, chunk.held.rows), chunk.row(number, gone))
        fk = chunk.load("fk", chunk.row(number, both(gone, there)), chunk.d)
        return [add(mass, tile.reduce("sum", fk, chunk.m))]

    (mass,) = chunk.over([chunk.mass()], visit)
    bounds = within(chunk.held.features, chunk.d)
    tile.store(chunk.held.mass("next_z"), *chunk.after, tile.iota(chunk.d), value=mass, bounds=bounds)


def _others(chunk: Chunk) -> None:
    """Entries of the ring's other chunks are what they were."""

    def visit(number: Node) -> Sequence[Node]:
        entry = add(chunk.held.keep, chunk.candidates(number))
        first = add(chunk.held.keep, chunk.base)
        own = both(tile.apply(Fn.LE, first, entry), tile.apply(Fn.LT, entry, add(first, chunk.held.size)))
        there = both(tile.apply(Fn.LT, entry, chunk.held.rows), tile.apply(Fn.NOT, own))
        _name(chunk, tile.apply(Fn.WHERE, there, entry, chunk.held.rows), row_of(chunk.held, chunk.at, entry, there))
        return []

    tile.loop(0, -(-chunk.held.ring // chunk.m.size), 1, [], visit)


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
        chunk = Chunk(held, builder.axis("m", schedule.rows), one, other, wide, narrow, taken, base)
        begins = tile.apply(Fn.EQ, tile.apply(Fn.TRUNCMOD, length, held.size), 0)
        due = both(begins, tile.apply(Fn.LE, held.ring, length))

        def take_in(_: Node) -> Sequence[Node]:
            staying = _staying(chunk)
            _name_cached(chunk, staying)
            _give(chunk, staying)
            _free(chunk, staying)
            _others(chunk)
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
