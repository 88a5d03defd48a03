"""New tokens of LoLA: softmax over what is held and over themselves, and the state of the others, one normaliser.

Programs share rows of one head's memory; the first of them adds the new rows to it, where nothing is read that is seen.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.decode.held import Held, columns, row_of, within
from sparsec.lower.decode.held_rows import Rows
from sparsec.lower.decode.pages import ENDS, LENGTHS
from sparsec.lower.scalars import add, both, ceil_div, most, mul, sub
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def _answer(rows: Rows) -> None:
    """Both under one normaliser."""
    exact, top, total = rows.softmax()
    sums, weight = rows.recalled()
    some = tile.apply(Fn.LT, 0.0, weight)
    safe = tile.apply(Fn.WHERE, some, weight, 1.0)
    height = tile.apply(Fn.WHERE, some, tile.apply(Fn.LOG2, safe), top)
    level = most(top, height)
    keep = tile.apply(Fn.EXP2, sub(top, level))
    share = tile.apply(Fn.WHERE, some, tile.apply(Fn.EXP2, sub(height, level)), 0.0)
    both_ = add(mul(exact, keep), mul(sums, tile.apply(Fn.DIV, share, safe)))
    out = rows.held.tokens("out")
    value = tile.cast(tile.apply(Fn.DIV, both_, add(mul(total, keep), share)), out.dtype)
    bounds: dict[int, tile.Value] = {1: tile.param("TQ"), **within(rows.held.cols, rows.e)}
    tile.store(out, *rows.place(), tile.iota(rows.e), value=value, bounds=bounds)


def _keep(rows: Rows, axes: Sequence[tuple[str, Axis]]) -> None:
    """New rows join memory, in the first program of a head."""
    first, count = tile.apply(Fn.EQ, tile.program_id(0), 0), tile.param("TQ")
    limit = tile.apply(Fn.WHERE, first, count, 0)

    def some(number: Node) -> Sequence[Node]:
        token = rows.keys(number)
        entry = add(rows.held.keep, tile.apply(Fn.TRUNCMOD, add(rows.length, token), rows.held.ring))
        row = row_of(rows.held, rows.at, entry, tile.apply(Fn.LT, token, limit))
        for part, axis in axes:
            value = rows.row(rows.held.tokens(part), token, axis, limit)
            bounds: dict[int, tile.Value] = {1: rows.held.rows, **within(rows.held.width(part), axis)}
            place = (tile.program_id(2), row, rows.head, tile.iota(axis))
            tile.store(rows.held.memory(part, "next"), *place, value=value, bounds=bounds)
        return []

    tile.loop(0, ceil_div(limit, rows.n.size), 1, [], some)


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
        rows = Rows(held, *some, *wide, features, sub(end, tile.param("TQ")))
        _answer(rows)
        whole = columns(builder, "g", held.features, schedule)
        _keep(rows, [("k", wide[0]), ("v", wide[1]), ("fk", whole)])
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
