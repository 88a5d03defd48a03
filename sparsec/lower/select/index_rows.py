"""How a program scores keys for one list of one token: its index heads are the rows of every product.

A score is the sum over the rows of weight * q . key, of an indexer weight * max(q . key, 0).
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.pieces import Span, dot_over, spans
from sparsec.lower.scalars import add, most, mul
from sparsec.lower.select.candidates import split
from sparsec.lower.select.frame import sharing
from sparsec.plan.specs import Selector
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor
from sparsec.tile.schedule import Schedule, ScheduleError


@dataclass(frozen=True, slots=True)
class Index:
    """The index queries of one list of a token.

    Attributes:
        rows: an axis of heads; None for a single one.
        weights: fp32, the scale in it; 0 in rows that are no heads.
        bounds: what keeps loads and stores of ``[B,TQ,H,…]`` at the heads of the list.
    """

    spec: Selector
    schedule: Schedule
    rows: Axis | None
    dims: list[Span]
    batch: Node
    token: Node
    head: Node
    key_head: Node
    queries: list[Node]
    weights: Node
    keys: Tensor
    bounds: dict[int, tile.Value]

    def key(self, key: Node, d: Span) -> Node:
        """Columns of keys ``[n, columns]``; keys past the last are zeros."""
        place = (*([self.batch] if self.spec.batched else []), key, self.key_head, d.index())
        bounds: dict[int, tile.Value] = {int(self.spec.batched): tile.param(self.spec.key_length)}
        return tile.load(self.keys, *place, bounds=bounds)

    def products(self, key: Node) -> Node:
        """q . key for every row."""
        read = [self.key(key, d) for d in self.dims]
        parts = [read] if self.keys.dtype == self.spec.dtype else split(read, self.spec.dtype)
        total: Node | None = None
        for part in parts:
            found = dict(zip(self.dims, part, strict=True))
            total = dot_over(self.dims, self.queries, found.__getitem__, self.schedule.precision, total)
        assert total is not None
        return total

    def active(self, product: Node) -> Node:
        """A product as it enters the score."""
        return most(product, 0.0) if self.spec.head_weights is not None else product

    def scores(self, key: Node) -> Node:
        """The scores of keys ``[n]``."""
        found = mul(self.active(self.products(key)), self.weights)
        return found if self.rows is None else tile.reduce("sum", found, self.rows)


def index(
    builder: tile.Builder,
    spec: Selector,
    schedule: Schedule,
    batch: Node,
    token: Node,
    listed: Node,
    names: tuple[str, str] = ("m", "d"),
) -> Index:
    """The index queries of list ``listed`` of a token; ``names`` are those of the axes of heads and columns."""
    rows = _rows(builder, names[0], sharing(spec), schedule)
    return filled(spec, schedule, rows, spans(builder, names[1], spec.dim, schedule), batch, token, listed)


def filled(
    spec: Selector, schedule: Schedule, rows: Axis | None, dims: list[Span], batch: Node, token: Node, listed: Node
) -> Index:
    """The same along axes that there are."""
    share = sharing(spec)
    first = mul(listed, share)
    head = first if rows is None else add(first, tile.iota(rows))
    bounds: dict[int, tile.Value] = {} if rows is None or rows.size == share else {2: add(first, share)}
    q, keys, *weights = tensors(spec)
    queries = [tile.load(q, batch, token, head, d.index(), bounds=dict(bounds)) for d in dims]
    scale = spec.scale / (share if spec.group == "mean" else 1)
    weight: Node = tile.const(scale)
    if weights:
        weight = mul(tile.cast(tile.load(weights[0], batch, token, head, bounds=dict(bounds)), "float32"), scale)
    key_head = tile.apply(Fn.TRUNCDIV, first, spec.heads // spec.kv_heads)
    return Index(spec, schedule, rows, dims, batch, token, head, key_head, queries, weight, keys, bounds)


def _rows(builder: tile.Builder, name: str, share: int, schedule: Schedule) -> Axis | None:
    if share == 1:
        return None
    padded = max(16, 1 << (share - 1).bit_length()) if schedule.split_dims else share
    return builder.axis(name, padded)


def tensors(spec: Selector) -> list[Tensor]:
    """Index queries, keys, and the weights of an indexer's heads."""
    lead = ["B"] if spec.batched else []
    found = [
        Tensor(spec.q, spec.dtype, ("B", "TQ", spec.heads, spec.dim)),
        Tensor(spec.keys, spec.key_dtype or spec.dtype, (*lead, spec.key_length, spec.kv_heads, spec.dim)),
    ]
    if spec.head_weights is not None:
        found.append(Tensor(spec.head_weights, spec.dtype, ("B", "TQ", spec.heads)))
    return found


def lists(spec: Selector) -> int:
    """Lists per token."""
    return spec.heads // sharing(spec)


def listed(spec: Selector, columns: int, name: str) -> Tensor:
    """A tensor of columns ``[B,TQ,HS,slots * columns]``."""
    return Tensor(name, "float32", ("B", "TQ", lists(spec), spec.slots * columns))


def check(schedule: Schedule) -> None:
    """Refuse a tile of keys that is none."""
    if schedule.block & (schedule.block - 1) or (schedule.split_dims and schedule.block < 16):
        raise ScheduleError(f"a tile of {schedule.block} keys is none: powers of two from 16 on are")
