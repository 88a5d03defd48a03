"""The entries of a complete inverse cut into shares of bounded length, so that a popular chunk is no single long loop.

Every chunk has a share, chunks that nobody chose an empty one. They are counted from a chunk's last entry: programs
that walk theirs backwards, side by side, then meet the same queries at about the same time. What the shares of a cut
chunk give are partial sums, kept apart and added up afterwards. A share may be ``SPREAD / splits`` times as long as the
entries of a mean chunk, so that there are at most ``splits`` times as many partial sums as chunks, plus one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.gathered import chunks
from sparsec.lower.inverse.index import Inverse, as_scratch, exclusive
from sparsec.lower.inverse.steps import CHUNKS
from sparsec.lower.lowered import Scratch
from sparsec.lower.scalars import add, both, ceil_div, least, most, mul, sub
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.functions import maximum
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor

SPREAD = 2
SHARES = 32
"""Shares that a program lists."""

PARAMS = (*chunks.PARAMS, "CT", "WT", "XT", "LT")
FIELDS = 5


@dataclass(frozen=True, slots=True)
class Share:
    """One share, read by a program.

    Attributes:
        chunk: -1 where there is no such share.
        first, count: its entries.
        place: the number of its partial sum; -1 where it is its chunk's only share.
        pieces: the partial sums of its chunk if it is the first of several; else 0.
    """

    chunk: Node
    first: Node
    count: Node
    place: Node
    pieces: Node


def buffer(spec: GatheredAttention, found: Inverse) -> Tensor:
    """The shares ``[B, sets, WT, 5]``: the fields of ``Share``."""
    return Tensor(f"{spec.name}_shares", "int32", ("B", found.sets, "WT", FIELDS))


def read(shares: Tensor, at: tuple[Node, Node], number: Node) -> Share:
    """The share of this number."""
    return Share(*(tile.load(shares, *at, number, tile.const(k)) for k in range(FIELDS)))


def read_part(shares: Tensor, at: tuple[Node, Node], parts: int) -> tuple[Share, Node]:
    """The share of this program and its part of the chunk, where a share has a program for each of so many parts."""
    share = read(shares, at, tile.apply(Fn.TRUNCDIV, tile.program_id(0), parts))
    return share, tile.apply(Fn.TRUNCMOD, tile.program_id(0), parts) if parts > 1 else tile.const(0)


def params(found: Inverse, chunk: int, step: int, splits: int = 1) -> tuple[tuple[str, Expr], ...]:
    """Of shares LT long, a multiple of ``step``: at most WT, of which XT have a partial sum.

    Where there are few chunks and heads, shares that are ``splits`` times shorter give every processor one.
    """
    choices, count = var("TQ") * found.per_token, (var("TK") + (chunk - 1)) // chunk
    length = (choices * SPREAD // (maximum(count, 1) * (step * splits)) + 1) * step
    return ("LT", length), ("WT", choices // length + count), ("XT", choices * 2 // length + 1)


def limits(chunk: int, splits: int = 1) -> tuple[tuple[str, Expr], ...]:
    """What WT and XT never exceed, however long the lists of these chunks are."""
    count = (var("TK") + (chunk - 1)) // chunk
    most = maximum(count, 1) * splits
    return ("WT", count + most // SPREAD), ("XT", most)


def scratch(spec: GatheredAttention, found: Inverse) -> tuple[Scratch, ...]:
    """The buffer to allocate."""
    return (as_scratch(buffer(spec, found)),)


def lower(spec: GatheredAttention, found: Inverse) -> Program:
    """The kernel that lists the shares: one (some shares, set, batch) per grid point."""
    with tile.Builder() as builder:
        some, lanes = builder.axis("w", SHARES), builder.axis("c", CHUNKS)
        at, target = (tile.program_id(2), tile.program_id(1)), buffer(spec, found)
        number = add(mul(tile.program_id(0), SHARES), tile.iota(some))

        def visit(group: Node, *state: Node) -> Sequence[Node]:
            chunk = add(mul(group, CHUNKS), tile.iota(lanes))
            return _visit(found, at, number, chunk, state)

        start = [*(tile.const(0) for _ in range(3)), *(tile.full(0, some, dtype="int32") for _ in range(FIELDS))]
        fields = tile.loop(0, ceil_div(tile.param("CT"), CHUNKS), 1, start, visit)[3:]
        for k, field in enumerate(fields):
            value = sub(field, 1) if k in (0, 3) else field
            tile.store(target, *at, number, tile.const(k), value=value, bounds={2: tile.param("WT")})
        grid = (ceil_div(tile.param("WT"), SHARES), tile.const(found.sets), tile.param("B"))
        params = [(name, "int32") for name in PARAMS]
        return builder.program(f"{spec.name}_share", [found.totals, target], params, grid)


def _visit(found: Inverse, at: tuple[Node, Node], number: Node, chunk: Node, state: Sequence[Node]) -> Sequence[Node]:
    """The fields of the shares that belong to some chunks; chunk and place are one more than they say."""
    (shares, places, entries, *fields), length, count = state, tile.param("LT"), tile.param("CT")
    lanes = chunk.axes[0]
    total = tile.load(found.totals, *at, chunk, bounds={2: count})
    exists = tile.apply(Fn.LT, chunk, count)
    pieces = tile.apply(Fn.WHERE, exists, most(_quotient(total, length), 1), 0)
    several = tile.apply(Fn.WHERE, tile.apply(Fn.LT, 1, pieces), pieces, 0)
    local = sub(number, add(shares, exclusive(pieces)))
    inside = both(tile.apply(Fn.LE, 0, local), tile.apply(Fn.LT, local, pieces))
    passed = mul(local, length)
    place = add(add(add(places, exclusive(several)), local), 1)
    cut = tile.apply(Fn.LT, 1, pieces)
    values = (
        add(chunk, 1),
        add(add(entries, exclusive(total)), most(sub(sub(total, passed), length), 0)),
        least(sub(total, passed), length),
        tile.apply(Fn.WHERE, cut, place, 0),
        tile.apply(Fn.WHERE, tile.apply(Fn.EQ, local, 0), several, 0),
    )
    sums = [tile.reduce("sum", tile.apply(Fn.WHERE, inside, value, 0), lanes) for value in values]
    after = [add(x, tile.reduce("sum", y, lanes)) for x, y in ((shares, pieces), (places, several), (entries, total))]
    return [*after, *(add(x, y) for x, y in zip(fields, sums, strict=True))]


def _quotient(a: Node, b: Node) -> Node:
    """ceil(a / b)."""
    return tile.apply(Fn.TRUNCDIV, add(a, sub(b, 1)), b)
