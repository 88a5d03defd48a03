"""All that needs no state: rows and columns faded, and what rows see of the columns of their own chunk."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk import units
from sparsec.lower.scan.chunk.parts import CHUNKS, Chunk, power_of_two
from sparsec.lower.scan.keyed.fades import GROUP, Fades, Space, dims_of, over_dims, where_deep
from sparsec.lower.scan.keyed.sides import Keyed, Side
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor

Axes = tuple[Axis, Axis, Axis]
"""Tokens as rows, key dims, tokens as columns."""


def lower(keyed: Keyed) -> Program:
    """One (head, chunk, batch) per grid point."""
    own = keyed.own
    with tile.Builder() as builder:
        axes, chunk = _axes(builder, keyed), chunk_of(keyed)
        near = own.schedule.precision if own.writes.half == "float32" else "tf32"  # more than half precision has

        def visit(at: Space, *products: Node) -> Sequence[Node]:
            f = Fades(keyed, chunk, at)
            tile.store(keyed.totals, chunk.batch, chunk.head, chunk.number, at.dim, value=f.total())
            rows = [_row(keyed, f, row) for row in keyed.rows]
            columns = [_column(keyed, f, column) for column in keyed.columns]
            pairs = [(x, y) for y in columns for x in rows]
            return [tile.dot(x, y, at.dims, acc, near) for (x, y), acc in zip(pairs, products, strict=True)]

        pairs = _pairs(keyed)
        found = over_dims(own, axes, [tile.full(0.0, axes[0], axes[2])] * len(pairs), visit)
        for (row, column), value in zip(pairs, found, strict=True):
            _store_product(keyed, chunk, axes, row, column, value)
        written = [keyed.totals, *(keyed.faded(s) for s in (*keyed.rows, *keyed.columns)), *_products(keyed)]
        return own.program(builder, "keyed", [*inputs(keyed), *written], grid(keyed))


def lower_deep(keyed: Keyed) -> Program:
    """All of it once more, exactly, in chunks that fade too far for products of tiles."""
    own = keyed.own
    with tile.Builder() as builder:
        group = builder.axis("g", GROUP)
        axes, first = _axes(builder, keyed), chunk_of(keyed, GROUP)

        def again(chunk: Chunk) -> None:
            over_dims(own, axes, [], lambda at: _store_faded(keyed, Fades(keyed, chunk, at, True)))
            for row, column in _pairs(keyed):

                def visit(at: Space, found: Node, row: Side = row, column: Side = column) -> Sequence[Node]:
                    return [_by_columns(Fades(keyed, chunk, at, True), row, column, found)]

                (value,) = over_dims(own, axes, [tile.full(0.0, axes[0], axes[2])], visit)
                _store_product(keyed, chunk, axes, row, column, value)

        where_deep(keyed, first, (group, axes[1]), again)
        written = [*(keyed.faded(s) for s in (*keyed.rows, *keyed.columns)), *_products(keyed)]
        return own.program(builder, "deep", [*inputs(keyed), keyed.totals, *written], grid(keyed, GROUP))


def grid(keyed: Keyed, group: int = 1) -> tuple[tile.Value, ...]:
    """One (batch, ``group`` of chunks, head) per grid point, in the dimension that has no limit.

    Heads are neighbours in memory, so programs at work read whole rows. Documents have the second dimension.
    """
    if keyed.own.schedule.documents:
        return (mul(_groups(group), keyed.own.writes.heads), tile.param("B"))
    return (mul(mul(tile.param("B"), _groups(group)), keyed.own.writes.heads),)


def chunk_of(keyed: Keyed, group: int = 1) -> Chunk:
    """The chunk of a program, or the first of its group."""
    if keyed.own.schedule.documents:
        number, head = (tile.apply(fn, tile.program_id(0), keyed.own.writes.heads) for fn in (Fn.TRUNCDIV, Fn.TRUNCMOD))
        return Chunk(keyed.own, tile.program_id(1), head, number if group == 1 else mul(number, group))
    heads, groups = keyed.own.writes.heads, _groups(group)
    before, head = (tile.apply(fn, tile.program_id(0), heads) for fn in (Fn.TRUNCDIV, Fn.TRUNCMOD))
    batch, number = (tile.apply(fn, before, groups) for fn in (Fn.TRUNCDIV, Fn.TRUNCMOD))
    return Chunk(keyed.own, batch, head, number if group == 1 else mul(number, group))


def _groups(group: int) -> Node:
    chunks = tile.param(CHUNKS)
    return chunks if group == 1 else tile.apply(Fn.TRUNCDIV, add(chunks, group - 1), group)


def _axes(builder: tile.Builder, keyed: Keyed) -> Axes:
    rows, dims = builder.axis("c", keyed.own.chunk), builder.axis("d", dims_of(keyed.own))
    return rows, dims, builder.axis("n", keyed.own.chunk)


def _pairs(keyed: Keyed) -> list[tuple[Side, Side]]:
    return [(row, column) for column in keyed.columns for row in keyed.rows]


def inputs(keyed: Keyed) -> list[Tensor]:
    """What tokens bring to rows and columns."""
    own, w = keyed.own, keyed.own.writes
    sides = (*keyed.rows, *keyed.columns)
    found = [own.tensor(s.operand, w.heads, w.rows) for s in sides]
    found += [t for s in sides for t in units.tensors(own, s.operand, w.heads)]
    if w.decay is not None:
        found.append(own.tensor(w.decay, w.heads, *[w.rows] * (w.decay_kind == "key")))
    return found + ([own.tensor(w.beta, w.heads)] if w.beta is not None else [])


def _products(keyed: Keyed) -> list[Tensor]:
    return [_into(keyed, row, column) for row, column in _pairs(keyed)]


def _into(keyed: Keyed, row: Side, column: Side) -> Tensor:
    return keyed.seen(column) if row.name == "q" else keyed.met(column)


def _store_product(keyed: Keyed, chunk: Chunk, axes: Axes, row: Side, column: Side, value: Node) -> None:
    """A of a row and a column ``[c,n]``."""
    c, n, into = tile.iota(axes[0]), tile.iota(axes[2]), _into(keyed, row, column)
    value = tile.apply(Fn.WHERE, tile.apply(Fn.LT if row.strict else Fn.LE, n, c), value, 0.0)
    tile.store(into, chunk.batch, chunk.head, chunk.token(axes[0]), n, value=tile.cast(value, into.dtype))


def _store(tensor: Tensor, f: Fades, value: Node) -> None:
    place = (f.chunk.batch, f.chunk.head, f.chunk.token(f.at.rows), f.at.dim)
    tile.store(tensor, *place, value=tile.cast(value, tensor.dtype))


def _row(keyed: Keyed, f: Fades, row: Side) -> Node:
    """Store a row faded from the start of the chunk; what it is in products of tiles ``[c,d]``."""
    _store(keyed.faded(row), f, mul(f.vectors(row), f.kept(row)))
    return mul(f.vectors(row), f.of_row(row))


def _column(keyed: Keyed, f: Fades, column: Side) -> Node:
    """Store a column faded to the end of the chunk; what it is in products of tiles ``[n,d]``."""
    _store(keyed.faded(column), f, mul(f.vectors(column), f.left()))
    return tile.rename(mul(f.vectors(column), f.of_column()), f.at.rows, f.at.columns)


def _store_faded(keyed: Keyed, f: Fades) -> Sequence[Node]:
    for side in keyed.rows:
        _store(keyed.faded(side), f, mul(f.vectors(side), f.kept(side)))
    for side in keyed.columns:
        _store(keyed.faded(side), f, mul(f.vectors(side), f.left()))
    return []


def _by_columns(f: Fades, row: Side, column: Side, found: Node) -> Node:
    """``found`` and what a tile of key dims adds, column by column."""
    at, number = f.at, tile.iota(f.at.columns)
    x, since = f.vectors(row), f.since(row)

    def visit(j: Node, sums: Node, found: Node) -> Sequence[Node]:
        token = add(mul(f.chunk.number, f.chunk.own.chunk), j)
        sums = add(sums, f.steps(token))
        y = mul(f.vectors(column, token), power_of_two(sub(since, sums)))
        one = tile.reduce("sum", mul(x, y), at.dims)
        return [sums, add(found, tile.apply(Fn.WHERE, tile.apply(Fn.EQ, number, j), one, 0.0))]

    return tile.loop(0, f.chunk.own.chunk, 1, [tile.full(0.0, at.dims), found], visit)[1]
