"""Query rows of a tile that share keys: neighbouring tokens x heads of one group, packed token by token."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.scalars import add, least, mul
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node


@dataclass(frozen=True, slots=True)
class Rows:
    """Row r of a tile is head ``base + r % heads`` of token ``first + r // heads``; rows left over are never stored.

    Attributes:
        token, head: the row's indices into ``[B, TQ, H, …]``: tiles over ``axis``, or scalars where all rows agree.
        local: the number of the row's token within the tile; always below the number of tokens.
        bounds: what keeps loads and stores of ``[B, TQ, H, …]`` inside.
        last: the last token where the rows' tokens are no neighbours.
    """

    axis: Axis
    token: Node
    head: Node
    local: Node
    first: Node
    tokens: int
    bounds: dict[int, tile.Value]
    last: Node | None = None

    def place(self, batch: Node, *rest: Node) -> tuple[Node, ...]:
        """The indices of these rows in a tensor ``[B, TQ, H, …]``."""
        return (batch, self.token, self.head, *rest)

    @property
    def first_position(self) -> Node:
        """The position of the first token."""
        return add(self.first, tile.param("q_offset"))

    @property
    def last_position(self) -> Node:
        """The position of the last token that exists."""
        if self.last is not None:
            return add(self.last, tile.param("q_offset"))
        end = least(add(self.first, self.tokens), tile.param("TQ"))
        return add(add(end, -1), tile.param("q_offset"))


def one_token(axis: Axis, token: Node, base: Node, limit: Node | None) -> Rows:
    """The heads ``base … base + axis.size - 1`` of one token, those from ``limit`` on left out."""
    bounds: dict[int, tile.Value] = {} if limit is None else {2: limit}
    return Rows(axis, token, add(base, tile.iota(axis)), tile.const(0), token, 1, bounds)


def packed(axis: Axis, number: Node, base: Node, heads: int) -> Rows:
    """Tile ``number`` of the tokens, each with its heads ``base … base + heads - 1``."""
    tokens = axis.size // heads
    assert tokens, f"{axis.size} rows do not hold {heads} heads"
    first, length, row = mul(number, tokens), tile.param("TQ"), tile.iota(axis)
    if heads == 1:
        return Rows(axis, add(first, row), base, row, first, tokens, {1: length})
    local = tile.apply(Fn.TRUNCDIV, row, heads)
    head = add(base, tile.apply(Fn.TRUNCMOD, row, heads))
    token = add(first, local)
    if tokens * heads < axis.size:
        spare = tile.apply(Fn.LT, row, tokens * heads)
        token, local = tile.apply(Fn.WHERE, spare, token, length), least(local, tokens - 1)
    return Rows(axis, token, head, local, first, tokens, {1: length})
