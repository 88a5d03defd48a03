"""The walk of one chunk's queries: which share of the inverse a program has, and the rows of its next turn."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sparsec.lower.gathered import chunks
from sparsec.lower.gathered.chunks import Frame
from sparsec.lower.inverse import index as inverse
from sparsec.lower.inverse import shares
from sparsec.lower.inverse.index import Inverse
from sparsec.lower.inverse.shares import Share
from sparsec.lower.pieces import Span, spans
from sparsec.lower.rows import Rows
from sparsec.lower.scalars import add, both, ceil_div, least, mul, sub
from sparsec.plan.grad_specs import GatheredGradKV
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor
from sparsec.tile.schedule import Schedule

FEW = 4
"""Choices of a tile that are read one by one: a vector of them each thread would load again for all its rows."""


@dataclass(frozen=True, slots=True)
class Walk:
    """One program: part ``part`` of the chunk of a share, and the share's queries.

    Attributes:
        spec: the forward kernel, under the backward kernel's name.
        at: batch and set of the inverse.
        sources: what is read, by name.
    """

    grad: GatheredGradKV
    spec: GatheredAttention
    schedule: Schedule
    found: Inverse
    at: tuple[Node, Node]
    key_head: Node
    share: Share
    part: Node
    keys: Axis
    rows: Axis
    dims: list[Span]
    values: list[Span]
    sources: dict[str, Tensor]

    @property
    def step(self) -> int:
        """Choices of a tile of rows."""
        return self.schedule.rows // chunks.sharing(self.spec)


def forward(spec: GatheredGradKV) -> GatheredAttention:
    """The forward kernel with the backward kernel's name; the sink of a common softmax is in its log-sum-exp."""
    sink = spec.forward.sink if spec.forward.per == "chunk" else None
    return replace(spec.forward, name=spec.name, sink=sink)


def sources(spec: GatheredGradKV) -> dict[str, Tensor]:
    """What is read of tensors that are not the kernel's own, in launch order."""
    own = forward(spec)
    left_out = {own.indices, own.counts, own.out}
    found = {name: t for name, t in chunks.tensors(own).items() if name not in left_out}
    wide: tuple[int | str, ...] = ("B", "TQ", own.heads, own.value_dim)
    found[spec.grad] = Tensor(spec.grad, spec.grad_dtype, wide)
    if spec.delta is not None:
        found[spec.delta] = Tensor(spec.delta, "float32", wide[:3])
    return found


def begin(builder: tile.Builder, spec: GatheredGradKV, schedule: Schedule, rows: Axis | None = None) -> Walk:
    """A program's keys and share; an axis of rows that is given was made before that of the keys."""
    own, (found, at, share, part) = forward(spec), task(spec, schedule)
    keys = builder.axis("n", schedule.block)
    rows = builder.axis("m", schedule.rows) if rows is None else rows
    dims, values = spans(builder, "d", own.head_dim, schedule), spans(builder, "e", own.value_dim, schedule)
    key_head = tile.program_id(1)
    return Walk(spec, own, schedule, found, at, key_head, share, part, keys, rows, dims, values, sources(spec))


def task(spec: GatheredGradKV, schedule: Schedule) -> tuple[Inverse, tuple[Node, Node], Share, Node]:
    """The inverse, its batch and set, the share and the part of its chunk that a program of the grid works for."""
    own, key_head = forward(spec), tile.program_id(1)
    found = inverse.inverse(own, schedule, complete=True)
    at = (tile.program_id(2), key_head if found.sets > 1 else tile.const(0))
    return found, at, *shares.read_part(shares.buffer(own, found), at, parts_of(own, schedule))


def grid(spec: GatheredAttention, schedule: Schedule) -> tuple[Node, Node, Node]:
    """(share and part of a chunk, key/value head, batch)."""
    return mul(tile.param("WT"), parts_of(spec, schedule)), tile.const(spec.kv_heads), tile.param("B")


def parts_of(spec: GatheredAttention, schedule: Schedule) -> int:
    """Key tiles of a chunk."""
    return -(-spec.chunk // schedule.block)


def turns(walk: Walk) -> Node:
    """Tiles of rows of the share."""
    return ceil_div(walk.share.count, walk.step)


def entry_at(walk: Walk, at: Node) -> Node:
    """Entry ``at`` of the share; the last one past its end."""
    place = add(walk.share.first, least(at, sub(walk.share.count, 1)))
    return tile.load(walk.found.entries, *walk.at, place)


def _picked(walk: Walk, start: Node, lane: Node) -> Node:
    """Entry ``start + lane`` of the share."""
    if walk.step > FEW:
        return entry_at(walk, add(start, lane))
    each = [entry_at(walk, add(start, k)) for k in range(walk.step)]
    found = each[-1]
    for k in reversed(range(walk.step - 1)):
        found = tile.apply(Fn.WHERE, tile.apply(Fn.LE, lane, k), each[k], found)
    return found


def _rows(walk: Walk, n: Node) -> tuple[Rows, Node, Node]:
    """The query rows of a turn, each choice with the heads that share its list; the list and slot of each row.

    The last queries come first: all chunks may be chosen there, so programs that run together read the same ones.
    """
    spec, found, start = walk.spec, walk.found, mul(sub(sub(turns(walk), 1), n), walk.step)
    share = chunks.sharing(spec)
    lane = tile.apply(Fn.TRUNCDIV, tile.iota(walk.rows), share)
    there = tile.apply(Fn.LT, add(start, lane), walk.share.count)
    if walk.step * share < walk.schedule.rows:
        there = both(there, tile.apply(Fn.LT, lane, walk.step))
    entry = _picked(walk, start, lane)
    token = tile.apply(Fn.TRUNCDIV, entry, found.per_token)
    slot = tile.apply(Fn.TRUNCMOD, entry, spec.slots)
    local = tile.apply(Fn.TRUNCMOD, tile.iota(walk.rows), share)
    if found.lists > 1:
        local = tile.apply(Fn.TRUNCDIV, sub(entry, mul(token, found.per_token)), spec.slots)
    head = add(mul(walk.key_head, spec.heads // spec.kv_heads), local)
    ends = [tile.apply(Fn.TRUNCDIV, entry_at(walk, x), found.per_token) for x in (start, add(start, walk.step - 1))]
    token = tile.apply(Fn.WHERE, there, token, tile.param("TQ"))
    rows = Rows(walk.rows, token, head, tile.const(0), ends[0], 1, {1: tile.param("TQ")}, ends[1])
    listed = {"head": head, "kv_head": walk.key_head, "token": tile.const(0)}[spec.scope]
    return rows, listed, slot


def frame(walk: Walk, n: Node) -> Frame:
    """What the rows of a turn read."""
    spec, batch = walk.spec, walk.at[0]
    rows, listed, _ = _rows(walk, n)
    place = rows.place(batch)
    queries = [tile.load(walk.sources[spec.q], *place, d.index(), bounds=dict(rows.bounds)) for d in walk.dims]
    row = least(rows.token, sub(tile.param("TQ"), 1)) if spec.captures else rows.token
    env = {name: tile.param(name) for name in chunks.PARAMS}
    env |= {"b": batch, "h": rows.head, "i": add(row, tile.param("q_offset"))}
    env |= {"i_lo": rows.first_position, "i_hi": rows.last_position}
    sink = None
    if spec.sink is not None:
        sink = tile.const(0.0) if spec.sink == "zero" else tile.load(walk.sources[spec.sink], rows.head)
    return Frame(
        spec, walk.schedule, rows, walk.keys, walk.dims, walk.values, batch, listed, walk.key_head, queries, sink, env,
        walk.sources, 0,
    )  # fmt: skip
