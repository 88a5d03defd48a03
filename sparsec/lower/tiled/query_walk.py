"""Backward from the queries' side: a tile of queries meets the key tiles that its forward met."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsec.lower.pieces import dot_over, spans
from sparsec.lower.ranges import TileRange, tile_ranges
from sparsec.lower.scalars import add, ceil_div, mul
from sparsec.lower.tiled import grad as tiled_grad
from sparsec.lower.tiled import visits
from sparsec.lower.tiled.grad import Backward, Pairs, Queries
from sparsec.lower.tiled.visits import Visits
from sparsec.plan.grad_specs import TiledGradCapture, TiledGradQ
from sparsec.plan.specs import Piece
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor
from sparsec.tile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Walk:
    """One query tile, from row ``first`` on."""

    w: Backward
    queries: Queries
    first: Node
    batch: Node
    head: Node


@dataclass(frozen=True, slots=True)
class Meeting:
    """A tile of pairs, and its keys: a node per span."""

    pairs: Pairs
    keys: list[Node]


Consume = Callable[[Meeting, Sequence[Node]], Sequence[Node]]
"""What becomes of carried values where the queries meet a key tile."""


def begin(
    builder: tile.Builder, spec: TiledGradQ | TiledGradCapture, pieces: Sequence[Piece], schedule: Schedule
) -> Walk:
    """The query tile of a grid point (query tile, head, batch), loaded."""
    forward = spec.forward
    lists = [p.listed for p in pieces if p.listed is not None]
    for listed in lists:
        tiled_grad.check_list(listed, schedule)
    rows, keys = builder.axis("m", schedule.rows), builder.axis("n", schedule.block)
    dims, values = spans(builder, "d", forward.head_dim, schedule), spans(builder, "e", forward.value_dim, schedule)
    tensors = tiled_grad.tensors(forward, (spec.grad, spec.grad_dtype), spec.delta, pieces, lists)
    out = None
    if isinstance(spec, TiledGradQ) and spec.dots:
        shape: tuple[str | int, ...] = ("B", "TQ", forward.heads, forward.value_dim)
        out = tensors[forward.out] = Tensor(forward.out, forward.out_dtype or forward.dtype, shape)
    w = Backward(forward, spec.grad, spec.delta, schedule, rows, keys, dims, values, tensors)
    first, head, batch = mul(tile.program_id(0), schedule.rows), tile.program_id(1), tile.program_id(2)
    offset = tile.param("q_offset")
    last = tiled_grad.last_of(first, schedule.rows, tile.param("TQ"))
    env = {name: tile.param(name) for name, _ in tiled_grad.params(forward)}
    env |= {"i_lo": add(first, offset), "i_hi": add(last, offset)}
    return Walk(w, tiled_grad.load_queries(w, batch, head, first, env, False, out), first, batch, head)


def grid(spec: TiledGradQ | TiledGradCapture, schedule: Schedule) -> tuple[Node, Node, Node]:
    """Query tiles, heads, batch."""
    return ceil_div(tile.param("TQ"), schedule.rows), tile.const(spec.forward.heads), tile.param("B")


def walk(at: Walk, piece: Piece, state: list[Node], consume: Consume) -> list[Node]:
    """Meet every key tile of a piece."""
    for found in _visits(at, piece):

        def visit(n: Node, *carried: Node, found: Visits = found) -> Sequence[Node]:
            key_tile = found.at(n)
            return consume(_meet(at, piece, key_tile, found.masked(key_tile)), carried)

        state = tile.loop(0, found.count, 1, state, visit, at.w.schedule.stages)
    return state


def _visits(at: Walk, piece: Piece) -> list[Visits]:
    schedule, tensors, listed = at.w.schedule, at.w.tensors, piece.listed

    def ranges() -> list[TileRange]:
        return tile_ranges(piece, schedule.block, tile.param(piece.length), at.queries.env, tensors)

    if listed is None:
        return visits.of_ranges(ranges(), schedule.phases)
    number = tile.apply(Fn.TRUNCDIV, at.first, listed.block_q)
    row = visits.row_of(listed, at.batch, at.head, at.w.forward.heads, number)
    return visits.of_list(listed, tensors, row, listed.block_k // schedule.block, ranges)


def _meet(at: Walk, piece: Piece, key_tile: Node, masked: Node | bool | None) -> Meeting:
    w, length = at.w, tile.param(piece.length)
    key = add(mul(key_tile, w.schedule.block), tile.iota(w.keys))
    key_head = tile.apply(Fn.TRUNCDIV, at.head, w.forward.heads // w.forward.kv_heads)
    bounds: dict[int, tile.Value] = {} if masked is False else {int(piece.batched): length}

    def read(name: str, index: Node) -> Node:
        place = (at.batch, key, key_head, index) if piece.batched else (key, key_head, index)
        return tile.load(w.tensors[name], *place, bounds=bounds, other=0.0 if bounds else None)

    keys = [read(piece.k, d.index()) for d in w.dims]
    values = [read(piece.v, e.index()) for e in w.values]
    precision = w.schedule.precision
    product = dot_over(w.dims, at.queries.q, lambda d: keys[w.dims.index(d)], precision)
    dp = dot_over(w.values, at.queries.do, lambda e: values[w.values.index(e)], precision)
    inside = tile.apply(Fn.LT, key, length)
    return Meeting(tiled_grad.pairs(w, piece, at.queries, (key, product, dp), masked, inside), keys)
