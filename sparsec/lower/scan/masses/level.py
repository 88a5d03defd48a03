"""One candidate of a mixture: the scan whose keys are added up, its tokens in the order of its chunks, its scratch.

A mass is a vector per head, so no program walks: each chunk adds up its own keys, sums of chunks are carried on in one
small program, and then every chunk works out the masses of its tokens by itself,

    z_i = e^Γ_i z_0 + Σ_{j <= i} e^{Γ_i − Γ_j} beta_j k_j

with z_0 the mass before the chunk and Γ the log-decays summed from its start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsec.lower.called import called
from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scalars import mul, sub
from sparsec.lower.scan.chunk import factors, strengths
from sparsec.lower.scan.chunk import forward as chunk
from sparsec.lower.scan.chunk.operands import halves, product
from sparsec.lower.scan.chunk.parts import CHUNKS, Chunk, Chunked, column_limit, power, power_of_two
from sparsec.lower.scan.runs import Runs
from sparsec.lower.scan.sorted import gather
from sparsec.lower.scan.sorted import lower as sorting
from sparsec.lower.scan.sorted import spec as sort
from sparsec.lower.scan.sorted.spec import Moved
from sparsec.plan.states.scan_specs import Operand, Scan, Writes
from sparsec.scalar.expr import Expr
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Level:
    """A candidate.

    Attributes:
        own: how its tokens are written, in the order of its chunks.
        query: the queries ``[B,N,heads,dim]`` in that order.
        brought: keys and queries as they come, where the level's own programs sort them; None where that is done.
    """

    own: Chunked
    query: Operand
    heads: int
    brought: tuple[Writes, Moved, Moved] | None = None

    @property
    def dim(self) -> int:
        """Of a mass."""
        return self.own.writes.cols

    @property
    def group(self) -> int:
        """Query heads per mass."""
        return self.heads // self.own.writes.heads

    @property
    def limit(self) -> int:
        """The bound of columns, where they are padded."""
        return column_limit(self.dim, power(self.dim))

    @property
    def keys(self) -> Tensor:
        """What is added up."""
        w = self.own.writes
        return self.own.tensor(w.v, w.heads, w.cols)

    @property
    def queries(self) -> Tensor:
        """What asks."""
        return self.own.tensor(self.query, self.heads, self.dim)

    def per_chunk(self, name: str) -> Tensor:
        """A vector per chunk in fp32 ``[B,HKV,chunks,dim]``."""
        return Tensor(f"{self.own.name}_{name}", "float32", ("B", self.own.writes.heads, CHUNKS, power(self.dim)))

    @property
    def sums(self) -> Tensor:
        """What each chunk makes of a mass that is 0."""
        return self.per_chunk("leaves")

    @property
    def starts(self) -> Tensor:
        """The mass before each chunk."""
        return self.per_chunk("befores")

    def per_query(self, name: str) -> Tensor:
        """A number per token and query head in fp32 ``[B,N,heads]``."""
        return Tensor(f"{self.own.name}_{name}", "float32", ("B", self.own.writes.length, self.heads))

    def program(self, builder: tile.Builder, name: str, tensors: list[Tensor]) -> Program:
        """One (head, chunk, batch) per grid point."""
        return self.own.program(builder, name, tensors, (self.own.writes.heads, tile.param(CHUNKS), tile.param("B")))

    def rows(self, at: Chunk, axis: Axis, dims: Axis, query: Node | None = None) -> Node:
        """Keys of the chunk ``[n,d]``, or what a ``query`` head asks; sorted here where nobody has."""
        own = self.own
        if self.brought is None or own.runs is None:
            tensor, head = (self.keys, at.head) if query is None else (self.queries, query)
            return at.rows(tensor, head, axis, tile.iota(dims), self.limit)
        w, keys, queries = self.brought
        moved, head = (keys, at.head) if query is None else (queries, query)
        row, (given, made) = gather.rows_of(own.runs, axis, head, moved.heads, w.heads), moved.tensors(w)
        limits: dict[int, tile.Value] = {3: self.limit} if self.limit else {}
        bounds = {1: tile.param(own.runs.length, declare=True), **limits}
        found = tile.load(given, row.batch, row.at, head, tile.iota(dims), bounds=bounds)
        tile.store(made, row.batch, row.place, head, tile.iota(dims), value=found, bounds=limits)
        return found

    def touched(self, queries: bool) -> list[Tensor]:
        """What keys or queries are read from, and sorted into."""
        if self.brought is None or self.own.runs is None:
            return [self.queries if queries else self.keys]
        w, *moved = self.brought
        return [*moved[queries].tensors(w), self.own.runs.entries, self.own.runs.stretches]

    def chunk(self) -> Chunk:
        """That of the program in hand."""
        return Chunk(self.own, tile.program_id(2), tile.program_id(0), tile.program_id(1))


@dataclass(frozen=True, slots=True)
class Prepared:
    """A level and what is done before its own programs: tokens brought into its order, and decays summed."""

    level: Level
    steps: tuple[Step, ...]
    scratch: tuple[Tensor, ...]
    runs: Runs | None

    @property
    def params(self) -> dict[str, Expr]:
        """The launch parameters of the level's programs beyond the spec's."""
        own, runs = self.level.own.params(), self.runs
        return dict(own if runs is None else (*runs.params(), *sorting.over(runs, own)))

    def lowered(self, steps: Sequence[Step], scratch: Sequence[Tensor], ending: str) -> Lowered:
        """The level's programs, their launch parameters with an ending."""
        turned = self.runs.scratch() if self.runs is not None else []
        held = {t.name: as_scratch(t) for t in (*self.scratch, *scratch)}
        made = Lowered((*self.steps, *steps), (*turned, *held.values()), tuple(self.params.items()))
        return called(made, ending)


def prepared(
    scan: Scan, queries: Operand, heads: int, schedule: Schedule, more: Sequence[Moved] = (), whole: bool = True
) -> Prepared:
    """The level of one scan; tokens that choose parts are sorted by them, and ``more`` that they bring.

    Keys and queries are left to the level's own programs if not ``whole``.
    """
    w = scan.writes
    if w.route is None:
        level = Level(Chunked(scan.name, w, schedule), queries, heads)
        return Prepared(level, tuple(chunk.prepared(level.own)), tuple(_gates(level)), None)
    runs, inner = sort.runs(scan.name, w, schedule), sort.writes(scan.name, w)
    asked = sort.sorted_(scan.name, "query", queries)
    wide = Moved(w.v, inner.v, w.heads, w.cols), Moved(queries, asked, heads, w.cols)
    moved = [*wide, *more] if whole else list(more)
    if w.decay is not None and inner.decay is not None:
        moved.append(Moved(w.decay, inner.decay, w.heads))
    steps = sorting.brought_in(runs, w, inner, moved, schedule)
    level = Level(Chunked(scan.name, inner, schedule, runs), asked, heads, None if whole else (w, *wide))
    held = [*(m.tensors(w)[1] for m in (*wide, *moved)), *sorting.strengths(inner), *_gates(level)]
    return Prepared(level, (*steps, *chunk.prepared(level.own)), tuple(held), runs)


def _gates(level: Level) -> list[Tensor]:
    own = level.own
    return [own.sums] * own.decays + [own.rates] * own.rated + strengths.halves_of(own) + factors.tensors(own)


def small(schedule: Schedule) -> Schedule:
    """Of programs of one chunk, which load every tile once."""
    return replace(schedule, stages=1, descriptors=False, registers=0)


def read(level: Level) -> list[Tensor]:
    """What masses are worked out from."""
    own = level.own
    return [level.keys, level.starts, *own.betas()] + [own.sums] * own.decays


@dataclass(frozen=True, slots=True)
class Axes:
    """The axes of a program of one chunk: tokens that ask, tokens that are added up, columns."""

    asking: Axis
    added: Axis
    dims: Axis


def axes(builder: tile.Builder, level: Level) -> Axes:
    """In the order in which no product needs a transposed tile."""
    size = level.own.chunk
    return Axes(builder.axis("c", size), builder.axis("n", size), builder.axis("d", power(level.dim)))


def keys(level: Level, at: Chunk, a: Axes) -> Node:
    """``[n,d]``; 0 past the last token."""
    return at.rows(level.keys, at.head, a.added, tile.iota(a.dims), level.limit)


def fade(level: Level, at: Chunk, later: Axis, earlier: Axis) -> Node | None:
    """What is left at a later token of what an earlier one adds."""
    if not level.own.decays:
        return None
    return power_of_two(sub(at.sums(later), at.sums(earlier)))


def masses(level: Level, at: Chunk, a: Axes, own: bool) -> Node:
    """z ``[c,d]``, with each token's ``own`` key or without it."""
    c, n, beta = tile.iota(a.asking), tile.iota(a.added), at.beta(a.added)
    left = fade(level, at, a.asking, a.added)
    weight = tile.full(1.0, a.asking, a.added) if left is None else left
    weight = weight if beta is None else mul(weight, beta)
    seen = tile.apply(Fn.LE, n, c) if own else tile.apply(Fn.LT, n, c)
    parts = halves(tile.apply(Fn.WHERE, seen, weight, 0.0), level.keys.dtype)
    before = tile.load(level.starts, at.batch, at.head, at.number, tile.iota(a.dims))
    faded = mul(power_of_two(at.sums(a.asking)), before) if level.own.decays else before
    start = tile.apply(Fn.ADD, tile.full(0.0, a.asking, a.dims), faded)
    return product(parts, [keys(level, at, a)], a.added, start, level.own.schedule.precision)
