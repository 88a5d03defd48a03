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
class Part:
    """New rows of an input.

    Attributes:
        row: the heads and the elements of each.
        paged: where its rows live.
        unit: tokens per row; a row is written once its tokens are complete.
    """

    name: str
    row: tuple[int, int]
    dtype: str
    paged: Paged
    unit: int


@dataclass(frozen=True, slots=True)
class Append:
    """New rows ``[B, R, heads, dim]`` of some inputs; new tokens themselves are counted too."""

    name: str
    parts: tuple[Part, ...]


def lower(spec: Append, schedule: Schedule) -> Program:
    """One (row, 1, sequence) per grid point."""
    with tile.Builder() as builder:
        lengths, batch = Tensor(LENGTHS, "int32", ("B",)), tile.program_id(2)
        start = tile.load(lengths, batch)
        tensors: dict[str, Tensor] = {}
        if any(part.unit == 1 for part in spec.parts):
            tensors[ENDS] = Tensor(ENDS, "int32", ("B",))
            tile.store(tensors[ENDS], batch, value=add(start, tile.param(TOKENS)))
        read = [
            _read(builder, part, schedule) for part in spec.parts
        ]  # before any is stored: memory is waited for once
        for part, values in zip(spec.parts, read, strict=True):
            for made in _write(part, start, values):
                tensors[made.name] = made
        grid = (tile.param("R"), tile.const(1), tile.param("B"))
        params = [(name, "int32") for name in ("B", "R", TOKENS)]
        return builder.program(spec.name, [*tensors.values(), lengths], params, grid)


Values = list[tuple[Span, Span, Node]]
"""Some heads, some of their elements, and what the caller gave."""


def _new(part: Part) -> Tensor:
    return Tensor(part.name + NEW, part.dtype, ("B", "R", *part.row))


def _read(builder: tile.Builder, part: Part, schedule: Schedule) -> Values:
    """One input's new row."""
    found, place = [], (tile.program_id(2), tile.program_id(0))
    for head in _spans(builder, f"{part.name}_h", part.row[0], schedule):
        for span in _spans(builder, f"{part.name}_{head.start}", part.row[1], schedule):
            found.append((head, span, tile.load(_new(part), *place, head.index(), span.index())))
    return found


def _write(part: Part, start: Node, values: Values) -> tuple[Tensor, Tensor, Tensor]:
    """It to its page."""
    paged, batch = part.paged, tile.program_id(2)
    table = Tensor(paged.table, "int32", ("B", "blocks"))
    pages = Tensor(part.name, part.dtype, (f"{part.name}_pages", paged.rows, *part.row))
    row = add(tile.apply(Fn.TRUNCDIV, start, part.unit), tile.program_id(0))
    there = tile.apply(Fn.LT, row, tile.apply(Fn.TRUNCDIV, add(start, tile.param(TOKENS)), part.unit))
    block = tile.apply(Fn.WHERE, there, tile.apply(Fn.TRUNCDIV, row, paged.rows), 0)
    page, inside = tile.load(table, batch, block), tile.apply(Fn.TRUNCMOD, row, paged.rows)
    limit = tile.apply(Fn.WHERE, there, part.row[1], 0)
    for head, span, value in values:
        tile.store(pages, page, inside, head.index(), span.index(), value=value, bounds={3: limit})
    return _new(part), pages, table


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
