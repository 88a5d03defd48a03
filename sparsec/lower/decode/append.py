"""New rows of a cache: keys, values and landmarks go to their pages, at positions that only the device knows."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.decode.pages import ENDS, LENGTHS, TOKENS, Paged
from sparsec.lower.pieces import Span
from sparsec.lower.scalars import add
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule

NEW = "_new"
"""What the name of an input's new rows ends in."""


@dataclass(frozen=True, slots=True)
class Append:
    """New rows ``[B, R, width]`` of some inputs with as many tokens per row.

    Attributes:
        parts: (input, elements of a row, dtype, where its rows live).
        unit: tokens per row; a row is written once its tokens are complete. New tokens themselves are counted too.
    """

    name: str
    parts: tuple[tuple[str, int, str, Paged], ...]
    unit: int


def lower(spec: Append, schedule: Schedule) -> Program:
    """One (row, 1, sequence) per grid point."""
    with tile.Builder() as builder:
        lengths, number, batch = Tensor(LENGTHS, "int32", ("B",)), tile.program_id(0), tile.program_id(2)
        start = tile.load(lengths, batch)
        row = add(tile.apply(Fn.TRUNCDIV, start, spec.unit), number)
        end = tile.apply(Fn.TRUNCDIV, add(start, tile.param(TOKENS)), spec.unit)
        tensors: dict[str, Tensor] = {}
        if spec.unit == 1:
            tensors[ENDS] = Tensor(ENDS, "int32", ("B",))
            tile.store(tensors[ENDS], batch, value=end)
        for part in spec.parts:
            for made in _copy(builder, part, row, end, schedule):
                tensors[made.name] = made
        grid = (tile.param("R"), tile.const(1), tile.param("B"))
        params = [(name, "int32") for name in ("B", "R", TOKENS)]
        return builder.program(spec.name, [*tensors.values(), lengths], params, grid)


def _copy(
    builder: tile.Builder, part: tuple[str, int, str, Paged], row: Node, end: Node, schedule: Schedule
) -> tuple[Tensor, Tensor, Tensor]:
    """One input's row, from what the caller gave to its page."""
    name, width, dtype, paged = part
    new, table = Tensor(name + NEW, dtype, ("B", "R", width)), Tensor(paged.table, "int32", ("B", "blocks"))
    pages = Tensor(name, dtype, (f"{name}_pages", paged.rows, width))
    batch, there = tile.program_id(2), tile.apply(Fn.LT, row, end)
    block = tile.apply(Fn.WHERE, there, tile.apply(Fn.TRUNCDIV, row, paged.rows), 0)
    page, inside = tile.load(table, batch, block), tile.apply(Fn.TRUNCMOD, row, paged.rows)
    limit = tile.apply(Fn.WHERE, there, width, 0)
    for span in _spans(builder, name, width, schedule):
        value = tile.load(new, batch, tile.program_id(0), span.index())
        tile.store(pages, page, inside, span.index(), value=value, bounds={2: limit})
    return new, pages, table


def _spans(builder: tile.Builder, name: str, width: int, schedule: Schedule) -> list[Span]:
    """A row as axes: powers of two where the target needs them, of any size."""
    bits = [1 << b for b in reversed(range(width.bit_length())) if width >> b & 1]
    sizes = bits if schedule.split_dims else [width]
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    return [Span(s, builder.axis(f"{name}_{n}", w)) for n, (s, w) in enumerate(zip(starts, sizes, strict=True))]


def default(target: str) -> Schedule:
    """Nothing is computed: few warps."""
    triton = target.startswith("triton") or target == "interpreter"
    return Schedule(warps=4, stages=1, lanes=(), split_dims=triton)
