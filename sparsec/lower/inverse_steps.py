"""The three programs that turn the lists around; ``sparsec.lower.inverse`` has the buffers between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparsec.lower import chunks, inverse
from sparsec.lower.inverse import Inverse, exclusive
from sparsec.lower.scalars import add, ceil_div, least, mul, sub
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule

CHUNKS = 32
"""Chunks that a program looks at together."""

SEGMENTS = 64
TILES = 32

PARAMS = [(name, "int32") for name in chunks.PARAMS]


def programs(spec: GatheredAttention, schedule: Schedule) -> tuple[Program, Program, Program]:
    """tally, offsets and fill in launch order."""
    found = inverse.inverse(spec, schedule)
    return tally(spec, found), offsets(spec, found), fill(spec, found)


def _sources(spec: GatheredAttention) -> list[Tensor]:
    buffers = chunks.tensors(spec)
    return [buffers[name] for name in (spec.indices, spec.counts) if name is not None]


def tally(spec: GatheredAttention, found: Inverse) -> Program:
    """One (segment, set, batch) per grid point: its choices per chunk."""
    with tile.Builder() as builder:
        segment, at = tile.program_id(0), (tile.program_id(2), tile.program_id(1))
        entries, lanes = _axes(builder, spec, found)

        def count(chunk: Node) -> None:
            def step(_: Node, ids: Node, total: Node) -> Sequence[Node]:
                return [add(total, tile.reduce("sum", _flags(ids, chunk), entries))]

            (total,) = _walk(spec, found, at, segment, entries, [tile.full(0, lanes, dtype="int32")], step)
            bounds: dict[int, tile.Value] = {2: inverse.chunk_count(spec)}
            tile.store(found.tallies, *at, chunk, segment, value=total, bounds=bounds)

        _each_chunk_tile(spec, lanes, count)
        grid = (inverse.segment_count(spec, found), tile.const(found.sets), tile.param("B"))
        return builder.program(f"{spec.name}_tally", [*_sources(spec), found.tallies], PARAMS, grid)


def fill(spec: GatheredAttention, found: Inverse) -> Program:
    """One (segment, set, batch) per grid point: its choices to their places, in order."""
    with tile.Builder() as builder:
        segment, at = tile.program_id(0), (tile.program_id(2), tile.program_id(1))
        entries, lanes = _axes(builder, spec, found)
        end = inverse.entry_count(spec, found)

        def place(chunk: Node) -> None:
            def step(first: Node, ids: Node, passed: Node) -> Sequence[Node]:
                flags = _flags(ids, chunk)
                rank = add(passed, sub(tile.scan(flags, entries), flags))
                here = tile.reduce("sum", tile.apply(Fn.WHERE, tile.apply(Fn.EQ, flags, 1), rank, 0), lanes)
                there = tile.apply(Fn.EQ, tile.reduce("max", flags, lanes), 1)
                value = add(mul(first, found.lists * spec.slots), tile.iota(entries))
                where = tile.apply(Fn.WHERE, there, here, end)
                tile.store(found.entries, *at, where, value=value, bounds={2: end})
                return [add(passed, tile.reduce("sum", flags, entries))]

            bounds: dict[int, tile.Value] = {2: inverse.chunk_count(spec)}
            begin = tile.load(found.starts, *at, chunk, segment, bounds=bounds)
            _walk(spec, found, at, segment, entries, [begin], step)

        _each_chunk_tile(spec, lanes, place)
        grid = (inverse.segment_count(spec, found), tile.const(found.sets), tile.param("B"))
        return builder.program(f"{spec.name}_fill", [*_sources(spec), found.starts, found.entries], PARAMS, grid)


def _axes(builder: tile.Builder, spec: GatheredAttention, found: Inverse) -> tuple[Axis, Axis]:
    return builder.axis("t", inverse.step_entries(spec, found)), builder.axis("c", CHUNKS)


def _flags(ids: Node, chunk: Node) -> Node:
    """1 where a choice is of a chunk."""
    return tile.apply(Fn.WHERE, tile.apply(Fn.EQ, ids, chunk), 1, 0)


def _each_chunk_tile(spec: GatheredAttention, lanes: Axis, visit: Callable[[Node], None]) -> None:
    """``visit`` with the numbers of each tile of chunks."""

    def body(n: Node) -> Sequence[Node]:
        visit(add(mul(n, CHUNKS), tile.iota(lanes)))
        return []

    tile.loop(0, ceil_div(inverse.chunk_count(spec), CHUNKS), 1, [], body)


def _walk(
    spec: GatheredAttention,
    found: Inverse,
    at: tuple[Node, Node],
    segment: Node,
    entries: Axis,
    state: Sequence[Node],
    step: Callable[..., Sequence[Node]],
) -> list[Node]:
    """``step(first token, ids, *state)`` for the choices of a segment."""
    tokens, steps, tensors = inverse.step_tokens(spec, found), inverse.segment_steps(spec, found), chunks.tensors(spec)

    def body(n: Node, *carried: Node) -> Sequence[Node]:
        first = mul(add(mul(segment, steps), n), tokens)
        ids = inverse.choices(spec, found, tensors, at, first, tile.iota(entries))
        return step(first, ids, *carried)

    return tile.loop(0, steps, 1, state, body)


def offsets(spec: GatheredAttention, found: Inverse) -> Program:
    """One (set, batch) per grid point: the places of every (chunk, segment), and the tiles of every chunk."""
    with tile.Builder() as builder:
        lanes, parts, many = builder.axis("c", CHUNKS), builder.axis("g", SEGMENTS), builder.axis("w", TILES)
        at, segments = (tile.program_id(1), tile.program_id(0)), inverse.segment_count(spec, found)

        def visit(n: Node, passed: Node, tiles: Node) -> Sequence[Node]:
            chunk = add(mul(n, CHUNKS), tile.iota(lanes))
            counts = _scan_segments(spec, found, at, chunk, parts, segments, None)
            first, own = add(passed, exclusive(counts)), ceil_div(counts, found.per_tile)
            _scan_segments(spec, found, at, chunk, parts, segments, first)
            _cut(spec, found, at, many, (chunk, counts, first, own, add(tiles, exclusive(own))))
            return [add(passed, tile.reduce("sum", counts, lanes)), add(tiles, tile.reduce("sum", own, lanes))]

        start = [tile.const(0), tile.const(0)]
        _, tiles = tile.loop(0, ceil_div(inverse.chunk_count(spec), CHUNKS), 1, start, visit)
        tile.store(found.used, *at, value=tiles)
        grid = (tile.const(found.sets), tile.param("B"))
        tensors = [found.tallies, found.starts, found.tiles, found.used]
        return builder.program(f"{spec.name}_offsets", tensors, PARAMS, grid)


def _scan_segments(
    spec: GatheredAttention,
    found: Inverse,
    at: tuple[Node, Node],
    chunk: Node,
    parts: Axis,
    segments: Node,
    first: Node | None,
) -> Node:
    """Choices per chunk over all segments; with the place of each chunk's ``first``, stores the place of each part."""
    bounds: dict[int, tile.Value] = {2: inverse.chunk_count(spec), 3: segments}

    def visit(n: Node, passed: Node) -> Sequence[Node]:
        segment = add(mul(n, SEGMENTS), tile.iota(parts))
        counts = tile.load(found.tallies, *at, chunk, segment, bounds=bounds)
        if first is not None:
            place = add(passed, sub(tile.scan(counts, parts), counts))
            tile.store(found.starts, *at, chunk, segment, value=place, bounds=bounds)
        return [add(passed, tile.reduce("sum", counts, parts))]

    start = tile.full(0, chunk.axes[0], dtype="int32") if first is None else first
    (passed,) = tile.loop(0, ceil_div(segments, SEGMENTS), 1, [start], visit)
    return passed


def _cut(
    spec: GatheredAttention,
    found: Inverse,
    at: tuple[Node, Node],
    many: Axis,
    of: tuple[Node, Node, Node, Node, Node],
) -> None:
    """Store the tiles of some chunks: chunk, first entry, number of entries."""
    chunk, counts, first, own, place = of
    limit = inverse.tile_count(spec, found)

    def visit(n: Node) -> Sequence[Node]:
        number = add(mul(n, TILES), tile.iota(many))
        before = mul(number, found.per_tile)
        row = tile.apply(Fn.WHERE, tile.apply(Fn.LT, number, own), add(place, number), limit)
        values = (chunk, add(first, before), least(sub(counts, before), found.per_tile))
        for field, value in enumerate(values):
            tile.store(found.tiles, *at, row, tile.const(field), value=value, bounds={2: limit})
        return []

    tile.loop(0, ceil_div(tile.reduce("max", own, own.axes[0]), TILES), 1, [], visit)
