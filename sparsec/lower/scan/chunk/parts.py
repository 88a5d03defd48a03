"""What the programs of a chunked scan share: chunk sizes, scratch between them, and loads of one chunk.

Tokens lie in chunks of ``Schedule.rows``; consecutive chunks make a segment, of which there are up to
``Schedule.splits``: fewer where batch and heads fill the device, or the sequence is short.
Log-decays are kept as base-2 logarithms, summed up from the start of the own chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.scalars import add, least, mul, sub
from sparsec.lower.scan.cell import padded
from sparsec.lower.scan.runs import CUT, Runs
from sparsec.plan.states.scan_specs import Operand, Writes
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.functions import maximum, minimum
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule

CHUNKS = "SCAN_CHUNKS"
"""The launch parameter with the number of chunks."""

SEGMENTS = "SCAN_SEGMENTS"
"""The launch parameter with the number of segments."""

SPAN = "SCAN_SPAN"
"""The launch parameter with the chunks of a segment."""

PADDED = "SCAN_PADDED"
"""The launch parameter with the tokens of all chunks, those past the last one too."""

_WARPS, _PROGRAMS = 1024, 256
"""How many warps side by side fill a device, eight for each of an H100's 132 processors, nearly; programs, at most."""

_SHORTEST = 2
"""Chunks of a segment, at least: shorter ones cost more to combine than they save."""

_LONG = 32
"""The same of a packed document: many side by side fill a GPU already."""


@dataclass(frozen=True, slots=True)
class Chunked:
    """A scan under a schedule: its tensors and its scratch.

    Attributes:
        name: what the names of programs and scratch begin with.
        runs: of a bank with a route, whose parts' tokens follow one another in chunks of their own; else None.
    """

    name: str
    writes: Writes
    schedule: Schedule
    runs: Runs | None = None

    @property
    def fades_out(self) -> bool:
        """Whether sums of decays say by themselves that a part begins: what comes before its first chunk is gone."""
        return self.runs is not None and self.decays and self.writes.initial is None

    @property
    def parts(self) -> int:
        """States per head."""
        return self.runs.route.parts if self.runs is not None else 1

    @property
    def chunk(self) -> int:
        """Tokens of a chunk."""
        return self.schedule.rows

    @property
    def splits(self) -> int:
        """Segments, at most."""
        return self.schedule.splits

    @property
    def delta(self) -> bool:
        """Whether a write depends on what the state answers."""
        return self.writes.rule == "delta" or self.writes.erase is not None

    @property
    def split(self) -> bool:
        """Whether what goes into states is multiplied as the sum of two half-precision numbers."""
        return self.delta or self.writes.split

    @property
    def splits_scores(self) -> bool:
        """Whether scores are multiplied so too: where nothing fades, they carry most of the error."""
        return self.splits_states or (self.delta and self.writes.decay is None)

    @property
    def wide(self) -> str:
        """The dtype of what is multiplied more than once: that of keys or, where that is a sum of two such, fp32."""
        return "float32" if self.schedule.exact else self.writes.half

    @property
    def splits_states(self) -> bool:
        """Whether queries and keys ask states so."""
        return self.writes.split or self.schedule.exact

    @property
    def decays(self) -> bool:
        """Whether states fade as a whole."""
        return self.writes.decay is not None and not self.keyed

    @property
    def folds(self) -> bool:
        """Whether beta multiplies what is written, not what is seen of it: fp32 that is rounded only then."""
        return self.delta and not self.keyed

    @property
    def keyed(self) -> bool:
        """Whether the form of ``keyed`` is needed: key channels that fade by themselves, or other erase terms."""
        return needs_keyed(self.writes)

    @property
    def columns(self) -> int:
        """Value columns of a program."""
        w = self.writes
        return min(self.schedule.value_block or power(w.cols), power(w.cols))

    @property
    def tiles(self) -> int:
        """Tiles of value columns."""
        return -(-self.writes.cols // self.columns)

    @property
    def sums(self) -> Tensor:
        """Decays summed from the start of the chunk, the token's own included; fp32 ``[B,HKV,tokens]``."""
        return Tensor(f"{self.name}_sums", "float32", ("B", self.writes.heads, PADDED))

    @property
    def rates(self) -> Tensor:
        """Write strengths as the walks read them, times r of unit keys; fp32 ``[B,HKV,tokens]``."""
        name = "rates" if self.writes.beta is not None else f"unit_{self.writes.k.name}"
        return Tensor(f"{self.name}_{name}", "float32", ("B", self.writes.heads, PADDED))

    @property
    def rated(self) -> bool:
        """Whether there are such."""
        return (self.writes.beta is not None or self.writes.k.unit) and not self.keyed

    def betas(self) -> list[Tensor]:
        """Where write strengths are read; nothing where all are 1."""
        w = self.writes
        return [self.rates] if self.rated else [self.tensor(w.beta, w.heads)] if w.beta is not None else []

    @property
    def solved(self) -> Tensor:
        """(I + A)⁻¹ − I of each chunk, of ``wide`` numbers ``[B,HKV,tokens,chunk]``."""
        return Tensor(f"{self.name}_solved", self.wide, ("B", self.writes.heads, PADDED, self.chunk))

    @property
    def ends(self) -> Tensor:
        """What each segment leaves of a zero state, and beside it (delta rules) of a unit matrix; fp32."""
        w = self.writes
        wide = self.tiles * self.columns + (power(w.rows) if self.delta else 0)
        return Tensor(f"{self.name}_ends", "float32", ("B", w.heads, SEGMENTS, w.rows, wide))

    @property
    def fades(self) -> Tensor:
        """The decay over each segment; fp32 ``[B,HKV,segments]``, per key channel ``[B,HKV,segments,D]``."""
        dims = (power(self.writes.rows),) * self.keyed
        return Tensor(f"{self.name}_fades", "float32", ("B", self.writes.heads, SEGMENTS, *dims))

    @property
    def fading(self) -> bool:
        """Whether a segment's transition is a decay."""
        return (self.decays or self.keyed or self.runs is not None) and not self.delta

    @property
    def starts(self) -> Tensor:
        """The states before each segment; fp32."""
        w = self.writes
        return Tensor(f"{self.name}_starts", "float32", ("B", w.heads, SEGMENTS, w.rows, w.cols))

    def tensor(self, operand: Operand, heads: int, *dims: int) -> Tensor:
        """A tensor per token."""
        return Tensor(operand.name, operand.dtype, ("B", self.writes.length, heads, *dims))

    def params(self) -> tuple[tuple[str, Expr], ...]:
        """The launch parameters beyond the spec's."""
        chunks = (var(self.writes.length) + (self.chunk - 1)) // self.chunk
        beside, shortest = var("B") * self.writes.heads * self.tiles, _SHORTEST
        if self.schedule.documents:  # their number says nothing of their lengths
            beside, shortest = constant(self.writes.heads * self.tiles), _LONG
        room = min(_PROGRAMS, _WARPS // self.schedule.warps) // beside
        segments = maximum(1, minimum(self.splits, minimum(room, chunks // shortest)))
        span = (chunks + (segments - 1)) // segments
        return (CHUNKS, chunks), (SEGMENTS, segments), (SPAN, span), (PADDED, chunks * self.chunk)

    def program(
        self, builder: tile.Builder, name: str, tensors: Sequence[Tensor], grid: Sequence[tile.Value]
    ) -> Program:
        """The finished program ``<name of the scan>_<name>``."""
        used = {t.name: t for t in tensors}
        names = dict.fromkeys(["B", self.writes.length, CHUNKS, SEGMENTS, SPAN, *[CUT] * (self.runs is not None)])
        title = f"{self.name}_{name}" if name else self.name
        return builder.program(title, list(used.values()), [(n, "int32") for n in names], grid)


def power(size: int) -> int:
    """The smallest power of two that is not less, at least 16."""
    return max(16, padded(size))


def needs_keyed(writes: Writes) -> bool:
    """Whether key channels fade by themselves, vectors of their own erase, or the undecayed state is read first."""
    undecayed = writes.rule == "delta" and writes.decay_kind != "none" and writes.reads != "decayed"
    return writes.decay_kind == "key" or writes.erase is not None or undecayed


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk of one state head, inside a program.

    Attributes:
        number: which one, from the start of the sequence.
    """

    own: Chunked
    batch: Node
    head: Node
    number: Node

    def token(self, axis: Axis) -> Node:
        """Positions of the chunk's tokens."""
        return add(mul(self.number, self.own.chunk), tile.iota(axis))

    def rows(self, tensor: Tensor, head: Node, tokens: Axis, column: Node, limit: int = 0) -> Node:
        """A tile of a tensor per token; 0 past the last token, and from column ``limit`` on."""
        bounds: dict[int, tile.Value] = {1: tile.param(self.own.writes.length)}
        if limit:
            bounds[3] = limit
        return tile.load(tensor, self.batch, self.token(tokens), head, column, bounds=bounds)

    def sums(self, axis: Axis) -> Node:
        """The decays summed up to each token, its own included."""
        return tile.load(self.own.sums, self.batch, self.head, self.token(axis))

    def total(self) -> Node:
        """The decay over the chunk."""
        last = add(mul(self.number, self.own.chunk), self.own.chunk - 1)
        return tile.load(self.own.sums, self.batch, self.head, last)

    def beta(self, axis: Axis) -> Node | None:
        """The write strengths in fp32; 0 past the last token."""
        return self.beta_at(self.token(axis))

    def beta_at(self, token: Node) -> Node | None:
        """Those of some tokens."""
        if not self.own.rated:
            return self.given_beta(token)
        return tile.load(self.own.rates, self.batch, self.head, token)

    def given_beta(self, token: Node) -> Node | None:
        """Those of some tokens as they are given, which takes no room where loads run ahead."""
        w = self.own.writes
        if w.beta is None:
            return None
        tensor, bounds = self.own.tensor(w.beta, w.heads), {1: tile.param(w.length)}
        return tile.cast(tile.load(tensor, self.batch, token, self.head, bounds=dict(bounds)), "float32")

    def tile_of(self, tensor: Tensor, tokens: Axis, column: Node) -> Node:
        """A tile of scratch per token."""
        return tile.load(tensor, self.batch, self.head, self.token(tokens), column)

    def left(self, axis: Axis, further: Node | None = None) -> Node | None:
        """What is left of a write by each token at the end of the chunk, or after ``further`` decay."""
        total = self.total() if further is None else add(self.total(), further)
        return power_of_two(tile.apply(Fn.SUB, total, self.sums(axis))) if self.own.decays else None


def power_of_two(x: Node) -> Node:
    """2^x of what is at most 0, up to rounding."""
    return tile.apply(Fn.EXP2, tile.apply(Fn.MINIMUM, x, 0.0))


def column_limit(size: int, reach: int) -> int:
    """The bound of a column index that reaches ``reach``; 0 where it needs none."""
    return size if reach > size else 0


def segment_bounds(own: Chunked, segment: Node, batch: Node, head: Node) -> tuple[Node, Node]:
    """The first chunk of a segment and the one after its last.

    Of parts there is room for more chunks than there are; segments are of those that there are.
    """
    span, chunks = tile.param(SPAN), tile.param(CHUNKS)
    if own.runs is not None:
        chunks = own.runs.held(batch, head)
        segments = tile.param(SEGMENTS)
        span = tile.apply(Fn.TRUNCDIV, add(chunks, sub(segments, 1)), segments)
    first = mul(segment, span)
    return first, least(add(first, span), chunks)
