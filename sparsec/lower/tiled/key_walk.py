"""Backward from the keys' side: a tile of keys meets the query tiles that see it, for all heads and batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sparsec.lower.pieces import spans
from sparsec.lower.ranges import TileRange, tile_ranges
from sparsec.lower.scalars import add, mul
from sparsec.lower.tiled import grad as tiled_grad
from sparsec.lower.tiled import visits
from sparsec.lower.tiled.grad import Backward, Queries
from sparsec.lower.tiled.visits import Visits
from sparsec.lower.tiled.wide_keys import Shares
from sparsec.plan.grad_specs import TiledGradKV
from sparsec.plan.specs import BlockList, Piece
from sparsec.scalar.fn import Fn
from sparsec.scalar.walk import depends_on
from sparsec.tile import build as tile
from sparsec.tile.language import Node
from sparsec.tile.schedule import Schedule

Consume = Callable[[Queries, Node | bool | None, Sequence[Node]], Sequence[Node]]
"""What becomes of carried values where the keys meet a query tile; how it is masked is the second argument."""


@dataclass(frozen=True, slots=True)
class KeyTile:
    """One key tile of one key/value head, from key ``first`` on; ``k`` and ``v`` have a node per span of a head."""

    w: Backward
    piece: Piece
    listed: BlockList | None
    first: Node
    key: Node
    batch: Node
    key_head: Node
    k: list[Node]
    v: list[Node]
    ragged: bool = False

    @property
    def group(self) -> int:
        """Query heads that share these keys."""
        return self.w.forward.heads // self.w.forward.kv_heads


TOGETHER = 2
"""Heads whose key tiles take turns where lists were given: the first tiles have the longest lists, which would last to
the end of the last head's programs; those of two heads end while others run (5.33 ms became 4.97, 4 heads 5.07)."""


def turn(spec: TiledGradKV, tiles: Node) -> tuple[Node, Node]:
    """The key tile and the head of a program: tiles of ``TOGETHER`` heads take turns where lists were given."""
    number, head = tile.program_id(0), tile.program_id(1)
    if spec.listed is None or spec.listed.given is None or spec.forward.kv_heads % TOGETHER:
        return number, head
    within = add(mul(tile.apply(Fn.TRUNCMOD, head, TOGETHER), tiles), number)
    first = mul(tile.apply(Fn.TRUNCDIV, head, TOGETHER), TOGETHER)
    return tile.apply(Fn.TRUNCDIV, within, TOGETHER), add(first, tile.apply(Fn.TRUNCMOD, within, TOGETHER))


def begin(builder: tile.Builder, spec: TiledGradKV, schedule: Schedule, number: Node, key_head: Node) -> KeyTile:
    """Key tile ``number`` of a head of the grid point's batch, loaded."""
    forward, piece = spec.forward, spec.forward.pieces[spec.piece]
    assert (piece.listed is None) == (spec.listed is None), "a piece with a block list has a transposed one as well"
    tiled_grad.check_list(spec.listed, schedule)
    keys, rows = builder.axis("n", schedule.block), builder.axis("m", schedule.rows)
    dims, values = spans(builder, "d", forward.head_dim, schedule), spans(builder, "e", forward.value_dim, schedule)
    lists = [spec.listed] if spec.listed is not None else []
    tensors = tiled_grad.tensors(forward, (spec.grad, spec.grad_dtype), spec.delta, [piece], lists)
    w = Backward(forward, spec.grad, spec.delta, schedule, rows, keys, dims, values, tensors)
    first, batch = mul(number, schedule.block), tile.program_id(2)
    key = add(first, tile.iota(keys))
    lead = (batch, key, key_head) if piece.batched else (key, key_head)
    bounds: dict[int, tile.Value] = {int(piece.batched): tile.param(piece.length)}
    k = [tile.load(tensors[piece.k], *lead, d.index(), bounds=bounds) for d in dims]
    v = [tile.load(tensors[piece.v], *lead, e.index(), bounds=bounds) for e in values] if spec.grad_k else []
    return KeyTile(w, piece, spec.listed, first, key, batch, key_head, k, v, spec.ragged)


def walk(at: KeyTile, share: Shares, state: list[Node], consume: Consume) -> list[Node]:
    """Meet this program's share of the query tiles; heads and batch are the fastest to change where all see alike."""
    batches = tile.const(1) if at.piece.batched else tile.param("B")
    count = mul(batches, at.group) if at.group > 1 else batches
    if _alike(at):
        head, batch = at.key_head if at.group == 1 else mul(at.key_head, at.group), at.batch
        for found in _visits(at, head, batch):
            state = _meet_all(at, share, found, count, state, consume)
        return state

    def one(context: Node, *carried: Node) -> Sequence[Node]:
        head, batch = _context(at, context)
        inner = list(carried)
        for found in _visits(at, head, batch):
            inner = _meet_own(at, share, found, (head, batch), inner, consume)
        return inner

    return tile.loop(0, count, 1, state, one)


def _alike(at: KeyTile) -> bool:
    """Whether the visits are the same for all heads of the group and every batch that these keys serve."""
    if at.ragged and not at.piece.batched:
        return False
    if at.listed is not None:
        alike = at.group == 1 or at.listed.heads in (1, at.w.forward.kv_heads)
        return alike and (at.piece.batched or not at.listed.per_batch)
    differing = [*(["h"] if at.group > 1 else []), *([] if at.piece.batched else ["b"])]
    return at.piece.where is None or not differing or not depends_on(at.piece.where, *differing)


def _context(at: KeyTile, n: Node) -> tuple[Node, Node]:
    """The head and the batch of the n-th combination of both."""
    head, rest = at.key_head, n
    if at.group > 1:
        head = add(mul(at.key_head, at.group), tile.apply(Fn.TRUNCMOD, n, at.group))
        rest = tile.apply(Fn.TRUNCDIV, n, at.group)
    return head, at.batch if at.piece.batched else tile.apply(Fn.TRUNCMOD, rest, tile.param("B"))


def _meet_all(
    at: KeyTile, share: Shares, found: Visits, count: Node, state: list[Node], consume: Consume
) -> list[Node]:
    """One loop over visits x heads x batch."""

    def visit(n: Node, *carried: Node) -> Sequence[Node]:
        return _meet(at, found, tile.apply(Fn.TRUNCDIV, n, count), _context(at, n), carried, consume)

    lo, hi = share.bounds(mul(found.count, count))
    return tile.loop(lo, hi, 1, state, visit, at.w.schedule.stages)


def _meet_own(
    at: KeyTile, share: Shares, found: Visits, context: tuple[Node, Node], state: list[Node], consume: Consume
) -> list[Node]:
    """One loop over the visits of one head and batch."""

    def visit(n: Node, *carried: Node) -> Sequence[Node]:
        return _meet(at, found, n, context, carried, consume)

    lo, hi = share.bounds(found.count)
    return tile.loop(lo, hi, 1, state, visit, at.w.schedule.stages)


def _meet(
    at: KeyTile, found: Visits, n: Node, context: tuple[Node, Node], carried: Sequence[Node], consume: Consume
) -> Sequence[Node]:
    head, batch = context
    query_tile = found.at(n)
    masked = found.masked(query_tile)
    first, env = mul(query_tile, at.w.schedule.rows), _params(at)
    return consume(tiled_grad.load_queries(at.w, batch, head, first, env, masked is False), masked, carried)


def _params(at: KeyTile) -> dict[str, Node]:
    return {name: tile.param(name) for name, _ in tiled_grad.params(at.w.forward)}


def _visits(at: KeyTile, head: Node, batch: Node) -> list[Visits]:
    schedule, tensors, listed = at.w.schedule, at.w.tensors, at.listed

    def ranges() -> list[TileRange]:
        last = tiled_grad.last_of(at.first, schedule.block, tile.param(at.piece.length))
        env = {**_params(at), "b": batch, "h": head, "i_lo": at.first, "i_hi": last}
        rows = replace(at.piece, where=visits.turned(at.piece.where), size=None)
        return tile_ranges(rows, schedule.rows, tile.param("TQ"), env, tensors)

    if listed is None:
        return visits.of_ranges(ranges(), schedule.phases)
    row = visits.row_of(listed, batch, head, at.w.forward.heads, tile.apply(Fn.TRUNCDIV, at.first, listed.block_k))
    return visits.of_list(listed, tensors, row, listed.block_q // schedule.rows, ranges)
