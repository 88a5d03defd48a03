"""What backward kernels of tiled attention share: buffers, and the weights and gradients of a pair of tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsec.lower.pieces import Span, row_dots
from sparsec.lower.scalars import add, captured, least, most, mul, sub
from sparsec.lower.softmax import HIDDEN, LOG2E, NOTHING
from sparsec.lower.tiled.score import modified, pair_env, seen, slope
from sparsec.plan.specs import BlockList, Piece, TiledAttention
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor
from sparsec.tile.schedule import Schedule, ScheduleError

BEYOND = -HIDDEN
"""The log-sum-exp of rows that see nothing or do not exist: every weight is zero beside it, without an infinity."""

TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Backward:
    """A backward kernel under construction.

    Attributes:
        forward: the spec whose gradient is computed.
        grad, delta: names of the output's gradient and of delta.
        dims, values: spans of a head of queries and of values.
    """

    forward: TiledAttention
    grad: str
    delta: str
    schedule: Schedule
    rows: Axis
    keys: Axis
    dims: list[Span]
    values: list[Span]
    tensors: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Queries:
    """A tile of queries of one head, with what its backward needs.

    Attributes:
        q, do: a node per span of a head.
        lse: in base two; ``BEYOND`` for rows without keys.
        env: what predicates and biases may name, but for j.
    """

    q: list[Node]
    do: list[Node]
    lse: Node
    delta: Node
    env: dict[str, Node]


@dataclass(frozen=True, slots=True)
class Pairs:
    """A tile of pairs.

    Attributes:
        weight: the softmax weight; 0 for hidden pairs.
        logit: the gradient of the natural logit; None where values have no part in it.
        change: the gradient of ``scale * product``; None as well.
        visible, masked: which pairs the mask shows, and whether it has to be looked at.
    """

    weight: Node
    logit: Node | None
    change: Node | None
    product: Node
    env: dict[str, Node]
    visible: Node | None
    masked: Node | bool | None

    def seen(self, x: Node, other: float = 0.0) -> Node:
        """``x``, with ``other`` in place of hidden pairs."""
        return _hide(x, self.visible, self.masked, other) if x.axes else x


def params(forward: TiledAttention) -> list[tuple[str, str]]:
    """Launch parameters."""
    lengths = dict.fromkeys(["B", "TQ", "TK", "q_offset", *(p.length for p in forward.pieces)])
    return [(name, "int32") for name in lengths]


def tensors(
    forward: TiledAttention, grad: tuple[str, str], delta: str, pieces: Sequence[Piece], lists: Sequence[BlockList]
) -> dict[str, Tensor]:
    """What is read of some pieces, in launch order; ``grad`` is a name and a dtype."""
    lead: tuple[str | int, ...] = ("B", "TQ", forward.heads)
    assert forward.lse is not None, "a forward kernel with a gradient keeps its log-sum-exp"
    found = {forward.q: Tensor(forward.q, forward.dtype, (*lead, forward.head_dim))}
    for p in pieces:
        found |= {t.name: t for t in memory(forward, p)} | captured(p.captures)
    for listed in lists:
        tiles = ("LK", "LQ") if listed.transposed else ("LQ", "LK")
        found[listed.ids] = Tensor(listed.ids, "int32", ("LB", "LH", *tiles))
        found |= {n: Tensor(n, "int32", ("LB", "LH", tiles[0])) for n in listed.buffers[1:]}
    found[forward.lse] = Tensor(forward.lse, "float32", lead)
    found[grad[0]] = Tensor(grad[0], grad[1], (*lead, forward.value_dim))
    found[delta] = Tensor(delta, "float32", lead)
    return found


def memory(forward: TiledAttention, piece: Piece) -> tuple[Tensor, Tensor]:
    """The keys and the values of a piece."""
    lead: tuple[str | int, ...] = ("B", piece.length) if piece.batched else (piece.length,)
    shape = (*lead, forward.kv_heads)
    return (
        Tensor(piece.k, forward.dtype, (*shape, forward.head_dim)),
        Tensor(piece.v, forward.dtype, (*shape, forward.value_dim)),
    )


def check_list(listed: BlockList | None, schedule: Schedule) -> None:
    """Refuse tiles that do not divide those of a block list."""
    if listed is not None and (listed.block_q % schedule.rows or listed.block_k % schedule.block):
        raise ScheduleError(
            f"tiles of {schedule.rows} x {schedule.block} do not divide the block list's "
            f"{listed.block_q} x {listed.block_k}"
        )


def load_queries(
    w: Backward, batch: Node, head: Node, first: Node, env: dict[str, Node], whole: bool, out: Tensor | None = None
) -> Queries:
    """Rows from ``first`` on; ``whole`` where all of them are known to exist.

    Where ``out`` is given deltas are its rowdots with the gradients as they arrive, and are stored.
    """
    place = (batch, add(first, tile.iota(w.rows)), head)
    bounds: dict[int, tile.Value] = {} if whole else {1: tile.param("TQ")}

    def read(name: str, *rest: Node, other: float = 0.0) -> Node:
        return tile.load(w.tensors[name], *place, *rest, bounds=bounds, other=None if whole else other)

    assert w.forward.lse is not None
    lse = read(w.forward.lse, other=BEYOND)
    lse = tile.apply(Fn.WHERE, tile.apply(Fn.LE, lse, NOTHING), BEYOND, mul(lse, LOG2E))
    q = [read(w.forward.q, d.index()) for d in w.dims]
    arrived = [read(w.grad, e.index()) for e in w.values]
    do = [tile.cast(x, w.forward.dtype) for x in arrived]
    if out is None:
        delta = read(w.delta)
    else:
        delta = row_dots([tile.cast(read(out.name, e.index()), "float32") for e in w.values], arrived, w.values)
        tile.store(w.tensors[w.delta], *place, value=delta, bounds=bounds)
    position = add(add(first, tile.iota(w.rows)), tile.param("q_offset"))
    return Queries(q, do, lse, delta, {**env, "b": batch, "h": head, "i": position})


def pairs(
    w: Backward, piece: Piece, queries: Queries, keys: tuple[Node, Node, Node | None], masked: Node | bool | None,
    inside: Node | None,
) -> Pairs:  # fmt: skip
    """The weights of a tile of pairs and the gradients of their products.

    Args:
        keys: positions; products with the queries; products of values with the output's gradient.
        masked: False never, None always, else under that scalar condition.
        inside: keys that exist, where that is not known.
    """
    key, product, dp = keys
    env = pair_env(piece, queries.env, key)
    score, factor = modified(w.forward, piece, product, env, w.tensors)
    visible = None if masked is False else seen(piece, env, w.tensors, inside)
    weight = tile.apply(Fn.EXP2, sub(mul(_hide(score, visible, masked, HIDDEN), factor), queries.lse))
    if dp is None:
        return Pairs(weight, None, None, product, env, visible, masked)
    logit = mul(weight, sub(dp, queries.delta))
    found = Pairs(weight, logit, logit, product, env, visible, masked)
    through = slope(w.forward, piece, product, env, w.tensors)
    return found if through is None else replace(found, change=mul(logit, found.seen(through)))


def _hide(x: Node, visible: Node | None, masked: Node | bool | None, other: float) -> Node:
    if visible is None or masked is False:
        return x
    if masked is None:
        return tile.apply(Fn.WHERE, visible, x, other)
    assert isinstance(masked, Node)
    return tile.mask_if(masked, visible, x, other)


def accumulate(x: Node, others: Sequence[Node], over: Axis, totals: Sequence[Node], precision: str) -> list[Node]:
    """totals + x . others, x rounded as the others are; one total per span.

    fp16 has few digits below 1e-4: there x is brought near one first, row by row.
    """
    dtype = others[0].dtype
    if dtype != "float16":
        x = tile.cast(x, dtype)
        return [tile.dot(x, y, over, t, precision) for y, t in zip(others, totals, strict=True)]
    top = most(tile.reduce("max", tile.apply(Fn.ABS, x), over), TINY)
    x = tile.cast(mul(x, tile.apply(Fn.DIV, tile.const(1.0), top)), dtype)
    return [add(t, mul(tile.dot(x, y, over, None, precision), top)) for y, t in zip(others, totals, strict=True)]


def last_of(first: Node, count: int, length: Node) -> Node:
    """The last of ``count`` rows from ``first`` on that exists."""
    return sub(least(add(first, count), length), 1)
