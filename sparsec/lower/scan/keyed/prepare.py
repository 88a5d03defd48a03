"""All that needs no state: rows and columns faded, and what rows see of the columns of their own chunk."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk_parts import CHUNKS, Chunk, power_of_two
from sparsec.lower.scan.keyed.fades import Fades, space
from sparsec.lower.scan.keyed.sides import Keyed, Side
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor


def lower(keyed: Keyed) -> Program:
    """One (chunk, head, batch) per grid point."""
    own, w = keyed.own, keyed.own.writes
    with tile.Builder() as builder:
        at = space(builder, own)
        chunk = Chunk(own, tile.program_id(2), tile.program_id(1), tile.program_id(0))
        f = Fades(keyed, chunk, at)
        tile.store(keyed.totals, chunk.batch, chunk.head, chunk.number, tile.iota(at.dims), value=f.total())
        for row in keyed.rows:
            _store(keyed.faded(row), f, at.dims, f.lifted(row))
        for column in keyed.columns:
            _store(keyed.faded(column), f, at.dims, mul(f.vectors(column), f.left()))
        for row in keyed.rows:
            for column in keyed.columns:
                into = keyed.seen(column) if row.name == "q" else keyed.met(column)
                _store(into, f, at.columns, product(f, row, column))
        return own.program(
            builder, "keyed", [*inputs(keyed), *stored(keyed)], (tile.param(CHUNKS), w.heads, tile.param("B"))
        )


def inputs(keyed: Keyed) -> list[Tensor]:
    """What tokens bring to rows and columns."""
    own, w = keyed.own, keyed.own.writes
    found = [own.tensor(s.operand, w.heads, w.rows) for s in (*keyed.rows, *keyed.columns)]
    if w.decay is not None:
        found.append(own.tensor(w.decay, w.heads, *[w.rows] * (w.decay_kind == "key")))
    return found + ([own.tensor(w.beta, w.heads)] if w.beta is not None else [])


def stored(keyed: Keyed) -> list[Tensor]:
    """What the program writes."""
    found = [keyed.totals, *(keyed.faded(s) for s in (*keyed.rows, *keyed.columns))]
    found += [keyed.seen(s) for s in keyed.columns]
    return found + [keyed.met(s) for s in keyed.columns] * (keyed.asking is not None)


def _store(tensor: Tensor, f: Fades, last: Axis, value: Node) -> None:
    place = (f.chunk.batch, f.chunk.head, f.chunk.token(f.at.rows), tile.iota(last))
    tile.store(tensor, *place, value=tile.cast(value, tensor.dtype))


def product(f: Fades, row: Side, column: Side) -> Node:
    """A of a row and a column ``[c,n]``."""
    at = f.at
    x, y = mul(f.vectors(row), f.of_row(row)), mul(f.vectors(column), f.of_column())
    found = tile.dot(x, tile.rename(y, at.rows, at.columns), at.dims, precision="tf32")
    found = tile.apply(Fn.WHERE, at.visible(row.strict), found, 0.0)
    return f.instead([found], lambda cold: [_by_columns(cold, row, column)])[0]


def _by_columns(f: Fades, row: Side, column: Side) -> Node:
    """The same column by column."""
    at, number = f.at, tile.iota(f.at.columns)
    x, since = f.vectors(row), f.since(row)

    def visit(j: Node, sums: Node, found: Node) -> Sequence[Node]:
        token = add(mul(f.chunk.number, f.chunk.own.chunk), j)
        sums = add(sums, f.steps(token))
        y = mul(f.vectors(column, token), power_of_two(sub(since, sums)))
        one = tile.reduce("sum", mul(x, y), at.dims)
        return [sums, tile.apply(Fn.WHERE, tile.apply(Fn.EQ, number, j), one, found)]

    nothing = [tile.full(0.0, at.dims), tile.full(0.0, at.rows, at.columns)]
    _, found = tile.loop(0, f.chunk.own.chunk, 1, nothing, visit)
    return tile.apply(Fn.WHERE, at.visible(row.strict), found, 0.0)
