"""Who chose each part of a bank: the lists of a route turned around by a counting sort, without atomics.

An *entry* is ``token * slots + slot``. The entries of a part, ascending, are its *run*; those of −1 are the run after
the last part's. Runs follow one another, each beginning at a multiple of ``align``. Two programs: ``tally`` counts
choices per (segment of entries, part), ``fill`` sums the counts and writes the entries to their places. Where runs
are cut into stretches of ``align`` entries, a third one says which run each stretch belongs to, and lists tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.inverse.index import as_scratch, exclusive
from sparsec.lower.lowered import Scratch, Step
from sparsec.lower.scalars import add, both, ceil_div, mul, sub
from sparsec.plan.states.scan_specs import Route
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.functions import maximum
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule

SEGMENT = 256
"""Entries that a program counts."""

TALLIES = 32
"""Segments whose counts are added up at once."""

STRETCHES = 32
"""Stretches that a program lists."""

ROOM = "RUN_ROOM"
"""The launch parameter with the length of a list turned around, gaps between runs included."""

SEGMENTS = "RUN_SEGMENTS"
"""The launch parameter with the number of segments."""

CUT = "RUN_STRETCHES"
"""The launch parameter with the number of stretches, of which the last may belong to no run."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Where a route turned around lies.

    Attributes:
        name: what the names of programs and buffers begin with.
        length: the launch parameter with the number of tokens.
        align: runs begin at multiples of it.
        cut: whether each stretch of so many entries is described, and each entry's place known; a run then has a
            stretch even if it has no entry.
    """

    name: str
    route: Route
    length: str
    align: int = 1
    cut: bool = False

    @property
    def count(self) -> int:
        """Runs: one per part, and one of the slots that hold none."""
        return self.route.parts + 1

    @property
    def entries(self) -> Tensor:
        """``[B,lists,room]``; what lies between runs is nonsense."""
        return Tensor(f"{self.name}_entries", "int32", ("B", self.route.lists, ROOM))

    @property
    def spans(self) -> Tensor:
        """Where each run begins and how many entries it has ``[B,lists,runs,2]``."""
        return Tensor(f"{self.name}_spans", "int32", ("B", self.route.lists, self.count, 2))

    @property
    def tallies(self) -> Tensor:
        """Choices per segment and part ``[B,lists,segments,runs]``."""
        return Tensor(f"{self.name}_tallies", "int32", ("B", self.route.lists, SEGMENTS, self.count))

    @property
    def places(self) -> Tensor:
        """Where each entry is ``[B,N,lists,slots]``."""
        return Tensor(f"{self.name}_places", "int32", ("B", self.length, self.route.lists, self.route.slots))

    @property
    def stretches(self) -> Tensor:
        """Of each stretch its run, whether it is the run's first, whether its last, its entries ``[B,lists,·,4]``."""
        return Tensor(f"{self.name}_stretches", "int32", ("B", self.route.lists, CUT, 4))

    @property
    def tokens(self) -> Tensor:
        """The token of each entry, the sequence's length between runs ``[B,lists,room]``."""
        return tokens_of(self.places, ROOM)

    @property
    def ids(self) -> Tensor:
        """The lists ``[B,N,lists,slots]``."""
        return Tensor(self.route.ids, "int32", ("B", self.length, self.route.lists, self.route.slots))

    def listed(self, head: Node) -> Node:
        """The list of a state head: its own, or the one of all."""
        return head if self.route.lists > 1 else tile.const(0)

    def held(self, batch: Node, head: Node) -> Node:
        """How many stretches there are, those of parts without entries too: none after them holds any."""
        at = (batch, self.listed(head), self.route.parts)
        start, total = (tile.load(self.spans, *at, field) for field in range(2))
        return add(tile.apply(Fn.TRUNCDIV, start, self.align), ceil_div(total, self.align))

    def scratch(self) -> list[Scratch]:
        """The buffers to allocate."""
        more = (self.places, self.stretches, self.tokens) if self.cut else ()
        return [as_scratch(t) for t in (self.entries, self.spans, self.tallies, *more)]

    def tiles(self) -> Expr:
        """Stretches of ``align`` entries, gaps included: at most one per run is not full."""
        return var(self.length) * self.route.slots // self.align + self.count

    def params(self) -> tuple[tuple[str, Expr], ...]:
        """The launch parameters beyond the spec's."""
        segments = (var(self.length) * self.route.slots + (SEGMENT - 1)) // SEGMENT
        found = (ROOM, self.tiles() * self.align), (SEGMENTS, maximum(segments, constant(1)))
        return (*found, (CUT, self.tiles())) if self.cut else found

    def steps(self, schedule: Schedule) -> list[Step]:
        """The two programs; the schedule says only how dims are cut."""
        own = Schedule(warps=4, stages=1, lanes=("p", "n"), split_dims=schedule.split_dims)
        found = [Step(_tally(self), own), Step(_fill(self), own)]
        return [*found, Step(_cut(self), own)] if self.cut else found

    def program(
        self, builder: tile.Builder, name: str, tensors: Sequence[Tensor], first: Node | None = None
    ) -> Program:
        """One (segment, list, batch) per grid point; ``first`` is another first dimension of the grid."""
        names = dict.fromkeys(["B", "TQ", "TK", "q_offset", self.length, ROOM, SEGMENTS, *[CUT] * self.cut])
        grid = (first or tile.param(SEGMENTS), tile.const(self.route.lists), tile.param("B"))
        return builder.program(f"{self.name}_{name}", tensors, [(n, "int32") for n in names], grid)


@dataclass(frozen=True, slots=True)
class _Walk:
    """A program's walk over the entries of its segment, a few at a time, all runs together."""

    runs: Runs
    lanes: Axis
    few: Axis

    @property
    def at(self) -> tuple[Node, Node]:
        """Batch entry and list."""
        return tile.program_id(2), tile.program_id(1)

    @property
    def number(self) -> Node:
        """Runs [p]."""
        return tile.iota(self.lanes)

    def all(self) -> Node:
        """How many entries there are."""
        return mul(tile.param(self.runs.length), self.runs.route.slots)

    def chosen(self, step: Node) -> tuple[Node, Node]:
        """Some entries [n], and whether each belongs to each run [n,p]."""
        route = self.runs.route
        entry = add(add(mul(tile.program_id(0), SEGMENT), mul(step, self.few.size)), tile.iota(self.few))
        token, slot = tile.apply(Fn.TRUNCDIV, entry, route.slots), tile.apply(Fn.TRUNCMOD, entry, route.slots)
        limit: dict[int, tile.Value] = {1: tile.param(self.runs.length)}
        ids = tile.load(self.runs.ids, self.at[0], token, self.at[1], slot, bounds=limit, other=-1)
        run = tile.apply(Fn.WHERE, tile.apply(Fn.LT, ids, 0), route.parts, ids)
        there = both(tile.apply(Fn.EQ, run, self.number), tile.apply(Fn.LT, entry, self.all()))
        return entry, there


def _walk(builder: tile.Builder, runs: Runs) -> _Walk:
    lanes = 1 << (runs.count - 1).bit_length()
    return _Walk(runs, builder.axis("p", lanes), builder.axis("n", max(16, min(64, 4096 // lanes))))


def _tally(runs: Runs) -> Program:
    """Choices of every run in a segment."""
    with tile.Builder() as builder:
        walk = _walk(builder, runs)

        def visit(step: Node, total: Node) -> Sequence[Node]:
            _, there = walk.chosen(step)
            return [add(total, tile.reduce("sum", tile.apply(Fn.WHERE, there, 1, 0), walk.few))]

        start = [tile.full(0, walk.lanes, dtype="int32")]
        (total,) = tile.loop(0, SEGMENT // walk.few.size, 1, start, visit)
        place = (*walk.at, tile.program_id(0), walk.number)
        tile.store(runs.tallies, *place, value=total, bounds={3: runs.count})
        return runs.program(builder, "tally", [runs.ids, runs.tallies])


def _fill(runs: Runs) -> Program:
    """The entries of a segment to their places; the first segment's program says where runs lie."""
    with tile.Builder() as builder:
        walk, some, own = _walk(builder, runs), builder.axis("g", TALLIES), tile.program_id(0)
        limits: dict[int, tile.Value] = {2: tile.param(SEGMENTS), 3: runs.count}

        def count(group: Node, before: Node, total: Node) -> Sequence[Node]:
            segment = add(mul(group, TALLIES), tile.iota(some))
            found = tile.load(runs.tallies, *walk.at, segment, walk.number, bounds=dict(limits))
            earlier = tile.apply(Fn.WHERE, tile.apply(Fn.LT, segment, own), found, 0)
            return [add(before, tile.reduce("sum", earlier, some)), add(total, tile.reduce("sum", found, some))]

        nothing = tile.full(0, walk.lanes, dtype="int32")
        before, total = tile.loop(0, ceil_div(tile.param(SEGMENTS), TALLIES), 1, [nothing, nothing], count)
        start = exclusive(mul(_stretched(runs, total), runs.align))
        first = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, own, 0), walk.number, runs.count)
        for field, value in enumerate((start, total)):
            tile.store(runs.spans, *walk.at, first, field, value=value, bounds={2: runs.count})

        def place(step: Node, passed: Node) -> Sequence[Node]:
            entry, there = walk.chosen(step)
            one = tile.apply(Fn.WHERE, there, 1, 0)
            here = tile.apply(Fn.WHERE, there, add(passed, sub(tile.scan(one, walk.few), 1)), 0)
            target = tile.apply(
                Fn.WHERE, tile.apply(Fn.LT, entry, walk.all()), tile.reduce("sum", here, walk.lanes), tile.param(ROOM)
            )
            tile.store(runs.entries, *walk.at, target, value=entry, bounds={2: tile.param(ROOM)})
            if runs.cut:
                token, slot = (tile.apply(fn, entry, runs.route.slots) for fn in (Fn.TRUNCDIV, Fn.TRUNCMOD))
                own_place = (walk.at[0], token, walk.at[1], slot)
                tile.store(runs.places, *own_place, value=target, bounds={1: tile.param(runs.length)})
            return [add(passed, tile.reduce("sum", one, walk.few))]

        tile.loop(0, SEGMENT // walk.few.size, 1, [add(start, before)], place)
        made = [runs.spans, runs.entries] + [runs.places] * runs.cut
        return runs.program(builder, "fill", [runs.ids, runs.tallies, *made])


def _stretched(runs: Runs, total: Node) -> Node:
    """The stretches of runs with so many entries [p]."""
    found = ceil_div(total, runs.align)
    return tile.apply(Fn.MAXIMUM, found, 1) if runs.cut else found


def _cut(runs: Runs) -> Program:
    """Some stretches: which run each belongs to, and how."""
    with tile.Builder() as builder:
        walk, some = _walk(builder, runs), builder.axis("s", STRETCHES)
        number = add(mul(tile.program_id(0), STRETCHES), tile.iota(some))
        limit: dict[int, tile.Value] = {2: runs.count}
        start, total = (tile.load(runs.spans, *walk.at, walk.number, field, bounds=dict(limit)) for field in range(2))
        real = tile.apply(Fn.LT, walk.number, runs.count)
        first = tile.apply(Fn.TRUNCDIV, start, runs.align)
        after = add(first, _stretched(runs, total))
        mine = both(both(tile.apply(Fn.LE, first, number), tile.apply(Fn.LT, number, after)), real)
        left = sub(total, mul(sub(number, first), runs.align))
        held = tile.apply(Fn.MAXIMUM, tile.apply(Fn.MINIMUM, left, runs.align), 0)
        ends = [tile.apply(Fn.EQ, number, first), tile.apply(Fn.EQ, add(number, 1), after)]
        fields = [sub(walk.number, runs.route.parts), *(tile.apply(Fn.WHERE, x, 1, 0) for x in ends), held]
        for field, value in enumerate(fields):
            found = tile.reduce("sum", tile.apply(Fn.WHERE, mine, value, 0), walk.lanes)
            found = add(found, runs.route.parts) if field == 0 else found
            tile.store(runs.stretches, *walk.at, number, field, value=found, bounds={2: tile.param(CUT)})
        _list(builder, walk, number, found)
        grid = ceil_div(tile.param(CUT), STRETCHES)
        return runs.program(builder, "cut", [runs.spans, runs.entries, runs.stretches, runs.tokens], grid)


def _list(builder: tile.Builder, walk: _Walk, number: Node, held: Node) -> None:
    """The tokens of some stretches that hold so many entries."""
    runs, each = walk.runs, builder.axis("e", walk.runs.align)
    place = add(mul(number, runs.align), tile.iota(each))
    entry = tile.load(runs.entries, *walk.at, place, bounds={2: tile.param(ROOM)})
    token = tile.apply(Fn.TRUNCDIV, entry, runs.route.slots)
    token = tile.apply(Fn.WHERE, tile.apply(Fn.LT, tile.iota(each), held), token, tile.param(runs.length))
    tile.store(runs.tokens, *walk.at, place, value=token, bounds={2: tile.param(ROOM)})


def tokens_of(places: Tensor, room: str) -> Tensor:
    """The list of which these are the places; ``room`` is what its length is called."""
    name = places.name.removesuffix("_places") + "_tokens"
    return Tensor(name, "int32", (places.shape[0], places.shape[2], room))
