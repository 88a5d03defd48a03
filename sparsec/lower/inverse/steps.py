"""The three programs that turn the lists around; ``sparsec.lower.inverse.index`` has the buffers between them.

A program of ``tally`` and ``fill`` is one warp with a chunk to each lane: sums and scans over choices then stay
within a lane, and no warp waits for another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsec.lower.gathered import chunks
from sparsec.lower.inverse import index as inverse
from sparsec.lower.inverse.index import Inverse, exclusive
from sparsec.lower.scalars import add, both, ceil_div, least, most, mul, sub
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule

CHUNKS = 32
"""Chunks that a program looks at together: the lanes of a warp."""

SEGMENTS = 128
TILES = 32

PARAMS = [(name, "int32") for name in chunks.PARAMS]


def programs(spec: GatheredAttention, schedule: Schedule, complete: bool = False) -> tuple[Program, Program, Program]:
    """tally, offsets and fill in launch order."""
    found = inverse.inverse(spec, schedule, complete)
    return tally(spec, found), offsets(spec, found), fill(spec, found)


@dataclass(frozen=True, slots=True)
class Walk:
    """A program that looks at one segment of one set ``at`` (batch, set)."""

    spec: GatheredAttention
    found: Inverse
    at: tuple[Node, Node]
    segment: Node
    entries: Axis
    lanes: Axis

    def chunk(self, group: Node) -> Node:
        """The chunks of the lanes."""
        return add(mul(group, CHUNKS), tile.iota(self.lanes))

    def inside(self) -> dict[int, tile.Value]:
        """The bound of chunks in ``[B, sets, CT, …]``."""
        return {2: inverse.chunk_count(self.spec)}

    def each(self, state: Sequence[Node], step: Callable[..., Sequence[Node]], steps: tile.Value) -> list[Node]:
        """``step(entries, their chunks, *state)`` for some steps of the segment, the next chunks loaded meanwhile."""

        def body(n: Node, ids: Node, *carried: Node) -> Sequence[Node]:
            return [self.read(add(n, 1)), *step(self.entry(n), ids, *carried)]

        return tile.loop(0, steps, 1, [self.read(0), *state], body)[1:]

    def entry(self, n: Node | int) -> Node:
        """The entries of a step."""
        first = mul(self.segment, inverse.segment_steps(self.spec, self.found))
        number = add(mul(add(first, n), inverse.STEP), tile.iota(self.entries))
        return inverse.entry_at(self.spec, self.found, number)

    def read(self, n: Node | int) -> Node:
        """The chunks of a step's entries."""
        return inverse.choices(self.spec, self.found, chunks.tensors(self.spec), self.at, self.entry(n))

    def highest(self) -> Node:
        """The last chunk that the segment chose; of lists of the past, half of all chunks are then never looked for.

        Nobody asks where one look is enough for all chunks: -1 then.
        """
        several = tile.apply(Fn.LT, CHUNKS, inverse.chunk_count(self.spec))
        steps = tile.apply(Fn.WHERE, several, inverse.segment_steps(self.spec, self.found), 0)
        inits = [tile.full(-1, self.entries, dtype="int32")]

        def visit(n: Node, top: Node) -> Sequence[Node]:
            ids = self.read(n)
            return [most(top, tile.apply(Fn.WHERE, tile.apply(Fn.LT, ids, inverse.NONE), ids, -1))]

        (found,) = tile.loop(0, steps, 1, inits, visit)
        return tile.reduce("max", found, self.entries)

    def steps(self, group: Node, highest: Node) -> Node:
        """As many steps as find all choices of some chunks: none, where the segment chose only earlier ones.

        The first chunks are looked for in any case.
        """
        some = tile.apply(Fn.LE, mul(group, CHUNKS), most(highest, 0))
        return tile.apply(Fn.WHERE, some, inverse.segment_steps(self.spec, self.found), 0)


def _walk(builder: tile.Builder, spec: GatheredAttention, found: Inverse) -> Walk:
    at = (tile.program_id(2), tile.program_id(1))
    entries, lanes = builder.axis("t", inverse.STEP), builder.axis("c", CHUNKS)
    return Walk(spec, found, at, tile.program_id(0), entries, lanes)


def _finish(builder: tile.Builder, walk: Walk, name: str, buffers: Sequence[Tensor]) -> Program:
    spec, tensors = walk.spec, chunks.tensors(walk.spec)
    sources = [tensors[n] for n in (spec.indices, spec.counts) if n is not None]
    grid = (inverse.segment_count(walk.spec, walk.found), tile.const(walk.found.sets), tile.param("B"))
    return builder.program(f"{spec.name}_{name}", [*sources, *buffers], PARAMS, grid)


def _groups(spec: GatheredAttention) -> Node:
    """The number of times that a program looks at some chunks."""
    return ceil_div(inverse.chunk_count(spec), CHUNKS)


def tally(spec: GatheredAttention, found: Inverse) -> Program:
    """One (segment, set, batch) per grid point: its choices per chunk."""
    with tile.Builder() as builder:
        walk = _walk(builder, spec, found)
        highest = walk.highest()

        def count(group: Node) -> Sequence[Node]:
            chunk = walk.chunk(group)

            def step(_: Node, ids: Node, total: Node) -> Sequence[Node]:
                return [sub(total, tile.reduce("sum", _matches(ids, chunk), walk.entries))]

            (total,) = walk.each([tile.full(0, walk.lanes, dtype="int32")], step, walk.steps(group, highest))
            tile.store(found.tallies, *walk.at, chunk, walk.segment, value=total, bounds=walk.inside())
            return []

        tile.loop(0, _groups(spec), 1, [], count)
        return _finish(builder, walk, "tally", [found.tallies])


def _matches(ids: Node, chunk: Node) -> Node:
    """-1 where a choice is of a chunk, else 0, by arithmetic: one truth value an element ends up packed into bits."""
    return tile.apply(Fn.SHR, sub(tile.apply(Fn.XOR, ids, chunk), 1), 31)


def offsets(spec: GatheredAttention, found: Inverse) -> Program:
    """One (some chunks, set, batch) per grid point: running sums of their tallies over the segments."""
    with tile.Builder() as builder:
        lanes, parts = builder.axis("c", CHUNKS), builder.axis("g", SEGMENTS)
        at, segments = (tile.program_id(2), tile.program_id(1)), inverse.segment_count(spec, found)
        chunk = add(mul(tile.program_id(0), CHUNKS), tile.iota(lanes))
        bounds: dict[int, tile.Value] = {2: inverse.chunk_count(spec), 3: segments}

        def visit(n: Node, passed: Node) -> Sequence[Node]:
            segment = add(mul(n, SEGMENTS), tile.iota(parts))
            counts = tile.load(found.tallies, *at, chunk, segment, bounds=dict(bounds))
            before = add(passed, sub(tile.scan(counts, parts), counts))
            tile.store(found.before, *at, chunk, segment, value=before, bounds=dict(bounds))
            return [add(passed, tile.reduce("sum", counts, parts))]

        start = [tile.full(0, lanes, dtype="int32")]
        (total,) = tile.loop(0, ceil_div(segments, SEGMENTS), 1, start, visit)
        tile.store(found.totals, *at, chunk, value=total, bounds={2: inverse.chunk_count(spec)})
        grid = (_groups(spec), tile.const(found.sets), tile.param("B"))
        return builder.program(f"{spec.name}_offsets", [found.tallies, found.before, found.totals], PARAMS, grid)


def fill(spec: GatheredAttention, found: Inverse) -> Program:
    """One (segment, set, batch) per grid point: its choices to their places, in order, and its part of the tiles."""
    with tile.Builder() as builder:
        walk, some = _walk(builder, spec, found), builder.axis("w", TILES)
        highest = walk.highest()

        def place(group: Node, passed: Node) -> Sequence[Node]:
            first, _, _, after = _tiles(walk, group, passed)
            _place(walk, group, mul(first, found.per_tile), walk.steps(group, highest))
            return [after]

        (used,) = tile.loop(0, _groups(spec), 1, [tile.const(0)], place)
        if found.complete:
            return _finish(builder, walk, "fill", [found.before, found.totals, found.entries])
        number = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, walk.segment, 0), walk.at[1], found.sets)
        tile.store(found.used, walk.at[0], number, value=used, bounds={1: found.sets})
        written = [found.entries, found.tiles, found.used]
        if found.doubt is not None:
            tile.store(found.doubt, walk.at[0], number, value=tile.const(0), bounds={1: found.sets})
            written.append(found.doubt)
        _list_tiles(walk, some)
        return _finish(builder, walk, "fill", [found.before, found.totals, *written])


def _tiles(walk: Walk, group: Node, passed: Node) -> tuple[Node, Node, Node, Node]:
    """Of some chunks: the first tile, the number of tiles, the number of entries; and the tiles so far."""
    total = tile.load(walk.found.totals, *walk.at, walk.chunk(group), bounds=walk.inside())
    own = ceil_div(total, walk.found.per_tile)
    return add(passed, exclusive(own)), own, total, add(passed, tile.reduce("sum", own, walk.lanes))


def _place(walk: Walk, group: Node, start: Node, steps: Node) -> None:
    """Store the segment's choices of some chunks whose entries begin at ``start``."""
    found, end, chunk = walk.found, inverse.entry_count(walk.spec, walk.found), walk.chunk(group)
    before = tile.load(found.before, *walk.at, chunk, walk.segment, bounds=walk.inside())
    base = mul(group, CHUNKS)

    def step(entry: Node, ids: Node, place: Node) -> Sequence[Node]:
        matches = _matches(ids, chunk)
        passed = sub(place, tile.scan(matches, walk.entries))
        here = sub(tile.reduce("sum", tile.apply(Fn.AND, passed, matches), walk.lanes), 1)
        local = sub(ids, base)
        there = both(tile.apply(Fn.LE, 0, local), tile.apply(Fn.LT, local, CHUNKS))
        target = tile.apply(Fn.WHERE, there, here, end)
        tile.store(found.entries, *walk.at, target, value=entry, bounds={2: end})
        return [sub(place, tile.reduce("sum", matches, walk.entries))]

    walk.each([add(start, before)], step, steps)


def _list_tiles(walk: Walk, some: Axis) -> None:
    """Store chunk and number of entries of this program's share of the tiles."""
    spec, found = walk.spec, walk.found
    limit, segments = inverse.tile_count(spec, found), inverse.segment_count(spec, found)

    def share(n: Node) -> Sequence[Node]:
        number = add(mul(add(mul(n, segments), walk.segment), TILES), tile.iota(some))

        def visit(group: Node, passed: Node, chunk: Node, count: Node) -> Sequence[Node]:
            first, own, total, after = _tiles(walk, group, passed)
            local = sub(number, first)
            inside = both(tile.apply(Fn.LE, 0, local), tile.apply(Fn.LT, local, own))
            left = least(sub(total, mul(local, found.per_tile)), found.per_tile)
            fields = zip((chunk, count), (walk.chunk(group), left), strict=True)
            return [after, *(add(x, _picked(walk, inside, value)) for x, value in fields)]

        nothing = tile.full(0, some, dtype="int32")
        _, chunk, count = tile.loop(0, _groups(spec), 1, [tile.const(0), nothing, nothing], visit)
        for field, value in enumerate((chunk, count)):
            tile.store(found.tiles, *walk.at, number, tile.const(field), value=value, bounds={2: limit})
        return []

    shares = add(ceil_div(limit, TILES), sub(segments, 1))
    tile.loop(0, tile.apply(Fn.TRUNCDIV, shares, segments), 1, [], share)


def _picked(walk: Walk, inside: Node, value: Node) -> Node:
    """The value of the one lane that is ``inside``, 0 where none is."""
    return tile.reduce("sum", tile.apply(Fn.WHERE, inside, value, 0), walk.lanes)
