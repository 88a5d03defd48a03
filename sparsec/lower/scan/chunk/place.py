"""Where a program of a chunked scan works: programs that share a head's tokens are neighbours of one grid dimension."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.scalars import mul
from sparsec.lower.scan.chunk.parts import SEGMENTS, Chunked, segment_bounds
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node


@dataclass(frozen=True, slots=True)
class Place:
    """Which segment, tile of columns and head a program works on; programs that share a head's tokens are neighbours.

    Attributes:
        tiles: of columns per head and segment.
        heads: per batch entry.
    """

    own: Chunked
    tiles: int
    heads: int

    @property
    def segment(self) -> Node:
        """The segment."""
        return tile.program_id(1)

    @property
    def number(self) -> Node:
        """The tile of columns."""
        return tile.apply(Fn.TRUNCMOD, tile.program_id(0), self.tiles)

    @property
    def batch(self) -> Node:
        """The batch entry."""
        if self.own.schedule.documents:
            return tile.program_id(2)
        return tile.apply(Fn.TRUNCDIV, tile.program_id(0), self.tiles * self.heads)

    @property
    def head(self) -> Node:
        """The head."""
        both = tile.apply(Fn.TRUNCDIV, tile.program_id(0), self.tiles)
        return tile.apply(Fn.TRUNCMOD, both, self.heads)

    @property
    def bounds(self) -> tuple[Node, Node]:
        """The segment's first chunk and the one after its last."""
        state = tile.apply(Fn.TRUNCDIV, self.head, self.heads // self.own.writes.heads)
        return segment_bounds(self.own, self.segment, self.batch, state)

    @property
    def grid(self) -> tuple[tile.Value, ...]:
        """One point per (tile, head and batch entry), and segment."""
        if self.own.schedule.documents:
            return tile.const(self.heads * self.tiles), tile.param(SEGMENTS), tile.param("B")
        return mul(tile.param("B"), self.heads * self.tiles), tile.param(SEGMENTS)
