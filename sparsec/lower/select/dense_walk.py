"""All keys of a token as the columns of a loss: their attention is computed tile by tile and never written."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sparsec.lower.gathered import chunks
from sparsec.lower.gathered.chunks import Frame
from sparsec.lower.rows import one_token
from sparsec.lower.scalars import add, ceil_div, mul
from sparsec.lower.select import index_rows, list_sum
from sparsec.lower.select.index_rows import Index
from sparsec.lower.select.list_sum import Sum
from sparsec.plan.selection.signal_specs import ListSum
from sparsec.plan.specs import GatheredAttention, Selector
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor
from sparsec.tile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys that one token sees, a tile at a time.

    Attributes:
        s: the attention of the heads that answer to one list of scores, from unit ``first`` on.
    """

    own: Index
    s: Sum
    first: Node
    keys: Axis
    listed: Node

    @property
    def tensors(self) -> list[Tensor]:
        """What it reads: index queries and keys, and what attention does."""
        forward = self.s.spec.forward
        left = {forward.indices, forward.v} - {forward.k, forward.q}
        read = [t for name, t in self.s.tensors.items() if name not in left]
        return [*index_rows.tensors(self.own.spec), *read]

    @property
    def span(self) -> tuple[Node | int, Node | int]:
        """The first and the past-last tile that the token sees."""
        ranges = chunks.interior(self.s.f)
        if ranges is None:
            return 0, ceil_div(tile.param("TK"), self.keys.size)
        return ranges[0].start, ranges[-1].stop

    def key(self, n: Node) -> Node:
        """The keys of tile ``n``."""
        return add(mul(n, self.keys.size), tile.iota(self.keys))

    def scores(self, n: Node) -> Node:
        """The scores of a tile's keys."""
        return self.own.scores(self.key(n))

    def masses(self, n: Node) -> Node:
        """The attention of a tile's keys; -1 for keys that nobody sees."""
        key = self.key(n)
        total, seen = list_sum.over_units(self.s, key, tile.apply(Fn.LE, 0, key))
        return tile.apply(Fn.WHERE, tile.apply(Fn.LT, 0, seen), total, -1.0)

    def at(self, token: Node, listed: Node) -> Keys:
        """The same of another token and list."""
        own, s = self.own, self.s
        moved = index_rows.filled(own.spec, own.schedule, own.rows, own.dims, own.batch, token, listed)
        first = tile.const(0) if s.spec.forward.scope == "token" else listed
        return Keys(moved, replace(s, f=_moved(s, token, first)), first, self.keys, listed)


def keys(
    builder: tile.Builder, forward: GatheredAttention, index: Selector, schedule: Schedule, listed: Node | None = None
) -> Keys:
    """Those of token ``program_id(0)``, list ``program_id(1)`` or a given one, batch ``program_id(2)``."""
    index_rows.check(schedule)
    listed = tile.program_id(1) if listed is None else listed
    shared, share = forward.scope == "token", chunks.sharing(forward)
    first = tile.const(0) if shared else listed
    at, size = chunks.unit(forward, first), list_sum.row_tile(forward, schedule)
    token, batch = tile.program_id(0), tile.program_id(2)
    rows = one_token(builder.axis("m", size), token, at.head, add(at.head, share) if share % size else None)
    f = chunks.frame(builder, forward, schedule, rows, batch, at, 0)
    held = {name: t for name, t in f.tensors.items() if name != forward.out}
    spec = ListSum("masses", forward, "mass", 1, forward.out)
    s = Sum(spec, f, listed, forward.kv_heads if shared else 1, held)
    own = index_rows.index(builder, index, schedule, batch, token, listed, ("r", "f"))
    return Keys(own, s, first, f.keys, listed)


def _moved(s: Sum, token: Node, unit: Node) -> Frame:
    position = add(token, tile.param("q_offset"))
    env = {**s.f.env, "i": position, "i_lo": position, "i_hi": position}
    rows = replace(s.f.rows, token=token, first=token)
    return list_sum.frame(replace(s, f=replace(s.f, rows=rows, env=env)), unit)
