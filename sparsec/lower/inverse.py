"""Who chose each chunk: the lists turned around by a counting sort, without atomics and in O(T k) memory.

Three programs: ``tally`` counts choices per (chunk, segment of tokens), ``offsets`` turns the counts into places and
cuts every chunk's choices into tiles, ``fill`` writes the choices there, ascending. A token's own chunk is left out:
``sparsec.lower.slot_merge`` reads it beside the queries.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower import chunks
from sparsec.lower.lowered import Scratch
from sparsec.lower.scalars import add, both, ceil_div, least, most, mul, sub
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor
from sparsec.tile.schedule import Schedule

STEP = 256
"""Choices that a program compares with chunks at a time, where a token has no more than that."""

SEGMENT = 2048
"""Choices of a segment, about."""


@dataclass(frozen=True, slots=True)
class Inverse:
    """Where the inverse of the lists lies. A set is the lists that choose from the same keys.

    Attributes:
        tallies: choices per chunk and segment ``[B, sets, CT, ST]``; ``starts`` their places among ``entries``.
        entries: ``(token * lists + list) * k + slot`` of every choice, by chunk, then ascending ``[B, sets, ET]``.
        tiles: chunk, first entry and number of entries of each tile ``[B, sets, WT, 3]``, of which ``used``
            ``[B, sets]`` are there.
        lists: lists per token and set.
        per_tile: entries of a tile at most.
    """

    tallies: Tensor
    starts: Tensor
    entries: Tensor
    tiles: Tensor
    used: Tensor
    sets: int
    lists: int
    per_tile: int


def inverse(spec: GatheredAttention, schedule: Schedule) -> Inverse:
    """The buffers of one spec under one schedule."""
    sets = 1 if spec.scope == "token" else spec.kv_heads
    lists = spec.heads // spec.kv_heads if spec.scope == "head" else 1
    lead: tuple[str | int, ...] = ("B", sets)

    def buffer(name: str, *shape: str | int) -> Tensor:
        return Tensor(f"{spec.name}_{name}", "int32", (*lead, *shape))

    return Inverse(
        buffer("tallies", "CT", "ST"), buffer("starts", "CT", "ST"), buffer("entries", "ET"),
        buffer("tiles", "WT", 3), buffer("used"), sets, lists, schedule.rows // chunks.sharing(spec),
    )  # fmt: skip


def params(spec: GatheredAttention, schedule: Schedule) -> tuple[tuple[str, Expr], ...]:
    """Chunks, segments, entries and tiles at most."""
    found, tq, tk = inverse(spec, schedule), var("TQ"), var("TK")
    per_token, count = found.lists * spec.slots, (tk + (spec.chunk - 1)) // spec.chunk
    segment = step_tokens(spec, found) * segment_steps(spec, found)
    return (
        ("CT", count),
        ("ST", (tq + (segment - 1)) // segment),
        ("ET", tq * per_token),
        ("WT", tq * per_token // found.per_tile + count),
    )


def scratch(spec: GatheredAttention, schedule: Schedule) -> tuple[Scratch, ...]:
    """The buffers to allocate."""
    found = inverse(spec, schedule)
    tensors = (found.tallies, found.starts, found.entries, found.tiles, found.used)
    return tuple(as_scratch(t) for t in tensors)


def as_scratch(tensor: Tensor) -> Scratch:
    """A buffer whose extents are launch parameters and numbers."""
    shape = tuple(var(d) if isinstance(d, str) else constant(d) for d in tensor.shape)
    return Scratch(tensor.name, shape, tensor.dtype)


def step_entries(spec: GatheredAttention, found: Inverse) -> int:
    """Choices of a step with its padding: a power of two."""
    return max(STEP, 1 << (found.lists * spec.slots - 1).bit_length())


def step_tokens(spec: GatheredAttention, found: Inverse) -> int:
    """Tokens of a step."""
    return step_entries(spec, found) // (found.lists * spec.slots)


def segment_steps(spec: GatheredAttention, found: Inverse) -> int:
    """Steps of a segment."""
    return max(1, SEGMENT // step_entries(spec, found))


def chunk_count(spec: GatheredAttention) -> Node:
    """CT."""
    return ceil_div(tile.param("TK"), spec.chunk)


def entry_count(spec: GatheredAttention, found: Inverse) -> Node:
    """ET."""
    return mul(tile.param("TQ"), found.lists * spec.slots)


def segment_count(spec: GatheredAttention, found: Inverse) -> Node:
    """ST."""
    return ceil_div(tile.param("TQ"), step_tokens(spec, found) * segment_steps(spec, found))


def tile_count(spec: GatheredAttention, found: Inverse) -> Node:
    """WT: every chunk's last tile may be partly full."""
    full = tile.apply(Fn.TRUNCDIV, entry_count(spec, found), found.per_tile)
    return add(full, chunk_count(spec))


def own_chunk(spec: GatheredAttention, token: Node) -> Node:
    """The chunk at a token's own position; it is read beside the queries and not through the inverse."""
    return tile.apply(Fn.TRUNCDIV, most(add(token, tile.param("q_offset")), 0), spec.chunk)


def choices(
    spec: GatheredAttention, found: Inverse, tensors: dict[str, Tensor], at: tuple[Node, Node], first: Node, entry: Node
) -> Node:
    """The chunks of the ``entry``-th choices from token ``first`` on in a set ``at`` (batch, set), -1 where none."""
    batch, number = at
    end = least(tile.param("TQ"), add(first, step_tokens(spec, found)))
    token = add(first, tile.apply(Fn.TRUNCDIV, entry, found.lists * spec.slots))
    slot, listed = tile.apply(Fn.TRUNCMOD, entry, spec.slots), number
    if found.lists > 1:
        local = tile.apply(Fn.TRUNCMOD, tile.apply(Fn.TRUNCDIV, entry, spec.slots), found.lists)
        listed = add(mul(number, found.lists), local)
    ids = tile.load(tensors[spec.indices], batch, token, listed, slot, bounds={1: end}, other=-1)
    used = tile.apply(Fn.NE, ids, own_chunk(spec, token))
    if spec.counts is not None:
        count = tile.load(tensors[spec.counts], batch, token, listed, bounds={1: end})
        used = both(used, tile.apply(Fn.LT, slot, count))
    return tile.apply(Fn.WHERE, used, ids, -1)


def exclusive(x: Node) -> Node:
    """The sum of what comes before, along the only axis."""
    return sub(tile.scan(x, x.axes[0]), x)
