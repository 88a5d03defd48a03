"""Who chose each chunk: the lists turned around by a counting sort, without atomics and in O(T k) memory.

Three programs (``sparsec.lower.inverse.steps``): ``tally`` counts choices per (chunk, segment of tokens), ``offsets``
sums the counts over segments, ``fill`` writes the choices to their places, ascending, every chunk's from a new tile on.
Forward, a token's own chunk is left out: ``sparsec.lower.gathered.slot_merge`` reads it beside the queries. A backward
kernel asks for a ``complete`` inverse, where entries are packed without tiles;
``sparsec.lower.inverse.shares`` cuts them.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.gathered import chunks
from sparsec.lower.lowered import Scratch
from sparsec.lower.scalars import add, both, ceil_div, least, most, mul, sub
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.functions import maximum, minimum
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor
from sparsec.tile.schedule import Schedule

STEP = 64
"""Choices that a program looks at together."""

SEGMENT = 512
"""Choices of a segment at least; no fewer than there are chunks, so that the tallies are O(T k)."""

MANY = 2**17
"""Choices of a set from which on segments have twice as many: there are programs enough, and fewer segments to sum
(T16384 of MoBA 0.047 ms for 0.052; at T8192 it would be 0.034 for 0.030)."""

NONE = 2**31 - 1
"""Stands for "no chunk"."""


@dataclass(frozen=True, slots=True)
class Inverse:
    """Where the inverse of the lists lies. A set is the lists that choose from the same keys.

    Attributes:
        tallies: choices per chunk and segment ``[B, sets, CT, ST]``.
        before: of each chunk, choices in earlier segments ``[B, sets, CT, ST]``; ``totals`` in all ``[B, sets, CT]``.
        entries: ``(token * lists + list) * k + slot`` of every choice, by chunk, then ascending ``[B, sets, ET]``; a
            tile has ``per_tile`` of them, those of a chunk's last tile may be nonsense.
        tiles: chunk and number of entries of each tile ``[B, sets, WT, 2]``, of which ``used`` ``[B, sets]`` have any.
        lists: lists per token and set.
        doubt: ``[B, sets]``, 0 at first, for whoever finds that a set has to be read again; None where nobody asks.
        complete: whether a token's own chunk is among the entries, and there are no tiles: ``per_tile`` is 1 then.
    """

    tallies: Tensor
    before: Tensor
    totals: Tensor
    entries: Tensor
    tiles: Tensor
    used: Tensor
    sets: int
    lists: int
    per_tile: int
    slots: int
    complete: bool = False
    doubt: Tensor | None = None

    @property
    def per_token(self) -> int:
        """Choices of a token."""
        return self.lists * self.slots


def inverse(spec: GatheredAttention, schedule: Schedule, complete: bool = False) -> Inverse:
    """The buffers of one spec under one schedule."""
    per_tile = 1 if complete else schedule.rows // chunks.sharing(spec)
    sets = 1 if spec.scope == "token" else spec.kv_heads
    lists = spec.heads // spec.kv_heads if spec.scope == "head" else 1
    lead: tuple[str | int, ...] = ("B", sets)

    def buffer(name: str, *shape: str | int) -> Tensor:
        return Tensor(f"{spec.name}_{name}", "int32", (*lead, *shape))

    doubt = buffer("doubt") if schedule.has_roles and not schedule.maximum and not complete else None
    return Inverse(
        buffer("tallies", "CT", "ST"), buffer("before", "CT", "ST"), buffer("totals", "CT"), buffer("entries", "ET"),
        buffer("tiles", "WT", 2), buffer("used"), sets, lists, per_tile, spec.slots, complete,
        doubt,
    )  # fmt: skip


def params(spec: GatheredAttention, schedule: Schedule, complete: bool = False) -> tuple[tuple[str, Expr], ...]:
    """Chunks, segments, tiles at most and their entries."""
    found, tq, tk = inverse(spec, schedule, complete), var("TQ"), var("TK")
    choices, count = tq * found.per_token, (tk + (spec.chunk - 1)) // spec.chunk
    tiles, least_size = choices // found.per_tile + count, (minimum(choices // MANY, constant(1)) + 1) * SEGMENT
    segment = (maximum(count, least_size) + (STEP - 1)) // STEP * STEP
    tiles = tiles if complete else minimum(tiles, choices)
    return ("CT", count), ("ST", (choices + (segment - 1)) // segment), ("WT", tiles), ("ET", tiles * found.per_tile)


def limits(spec: GatheredAttention, schedule: Schedule) -> tuple[tuple[str, Expr], ...]:
    """What ST never exceeds, however many chunks there are."""
    choices = var("TQ") * inverse(spec, schedule).per_token
    return (("ST", (choices + (SEGMENT - 1)) // SEGMENT),)


def scratch(spec: GatheredAttention, schedule: Schedule, complete: bool = False) -> tuple[Scratch, ...]:
    """The buffers to allocate."""
    found = inverse(spec, schedule, complete)
    tensors = (found.tallies, found.before, found.totals, found.entries)
    more = [t for t in (found.tiles, found.used, found.doubt) if t is not None and not complete]
    return tuple(as_scratch(t) for t in (*tensors, *more))


def as_scratch(tensor: Tensor) -> Scratch:
    """A buffer whose extents are launch parameters and numbers."""
    shape = tuple(var(d) if isinstance(d, str) else constant(d) for d in tensor.shape)
    return Scratch(tensor.name, shape, tensor.dtype)


def chunk_count(spec: GatheredAttention) -> Node:
    """CT."""
    return ceil_div(tile.param("TK"), spec.chunk)


def segment_steps(spec: GatheredAttention, found: Inverse) -> Node:
    """How many STEPs a segment has."""
    many = least(tile.apply(Fn.TRUNCDIV, mul(tile.param("TQ"), found.per_token), MANY), 1)
    return ceil_div(most(chunk_count(spec), mul(add(many, 1), SEGMENT)), STEP)


def segment_count(spec: GatheredAttention, found: Inverse) -> Node:
    """How many segments there are: ST, or fewer where first slots are passed over."""
    listed, segment = choice_count(spec, found), mul(segment_steps(spec, found), STEP)
    return tile.apply(Fn.TRUNCDIV, add(listed, sub(segment, 1)), segment)


def _shorter(spec: GatheredAttention, found: Inverse) -> bool:
    """Whether first slots may be passed over: they hold tokens' own chunks, which are left out."""
    return spec.own_first and not found.complete and spec.slots > 1


def _beyond(spec: GatheredAttention) -> Node:
    """1 where the last token's own chunk comes after the last one, so that its first slot holds another; else 0."""
    return least(most(sub(add(own_chunk(spec, sub(tile.param("TQ"), 1)), 1), chunk_count(spec)), 0), 1)


def choice_count(spec: GatheredAttention, found: Inverse) -> Node:
    """The choices of a set that are looked at."""
    if not _shorter(spec, found):
        return mul(tile.param("TQ"), found.per_token)
    return mul(mul(tile.param("TQ"), found.lists), add(_beyond(spec), spec.slots - 1))


def entry_at(spec: GatheredAttention, found: Inverse, number: Node) -> Node:
    """The entry of the n-th choice that is looked at."""
    if not _shorter(spec, found):
        return number
    others = add(add(number, tile.apply(Fn.TRUNCDIV, number, spec.slots - 1)), 1)
    return tile.apply(Fn.WHERE, tile.apply(Fn.EQ, _beyond(spec), 1), number, others)


def tile_count(spec: GatheredAttention, found: Inverse) -> Node:
    """WT: every chunk's last tile may be partly full; without queries there are no tiles, and nobody counts them."""
    choices = mul(tile.param("TQ"), found.per_token)
    most_tiles = add(tile.apply(Fn.TRUNCDIV, choices, found.per_tile), chunk_count(spec))
    return most_tiles if found.complete else least(most_tiles, choices)


def entry_count(spec: GatheredAttention, found: Inverse) -> Node:
    """ET."""
    return mul(tile_count(spec, found), found.per_tile)


def own_chunk(spec: GatheredAttention, token: Node) -> Node:
    """The chunk at a token's own position; it is read beside the queries and not through the inverse."""
    return tile.apply(Fn.TRUNCDIV, most(add(token, tile.param("q_offset")), 0), spec.chunk)


def choices(
    spec: GatheredAttention, found: Inverse, tensors: dict[str, Tensor], at: tuple[Node, Node], entry: Node
) -> Node:
    """The chunks of some choices of a set ``at`` (batch, set); NONE where there is none or it is left out."""
    batch, number = at
    token, slot = tile.apply(Fn.TRUNCDIV, entry, found.per_token), tile.apply(Fn.TRUNCMOD, entry, spec.slots)
    listed = number
    if found.lists > 1:
        local = tile.apply(Fn.TRUNCMOD, tile.apply(Fn.TRUNCDIV, entry, spec.slots), found.lists)
        listed = add(mul(number, found.lists), local)
    bounds: dict[int, tile.Value] = {1: tile.param("TQ")}
    ids = tile.load(tensors[spec.indices], batch, token, listed, slot, bounds=dict(bounds), other=-1)
    used = tile.apply(Fn.LE, 0, ids)
    if not found.complete:
        used = both(used, tile.apply(Fn.NE, ids, own_chunk(spec, token)))
    if spec.counts is not None:
        count = tile.load(tensors[spec.counts], batch, token, listed, bounds=dict(bounds))
        used = both(used, tile.apply(Fn.LT, slot, count))
    return tile.apply(Fn.WHERE, used, ids, NONE)


def exclusive(x: Node) -> Node:
    """The sum of what comes before, along the only axis."""
    return sub(tile.scan(x, x.axes[0]), x)
