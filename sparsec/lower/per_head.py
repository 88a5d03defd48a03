"""Where a program of a grid of tiles, heads and batch entries is."""

from __future__ import annotations

from sparsec.tile import build as tile
from sparsec.tile.language import Node


class PerHead:
    """A program of one head of one batch entry: the second and the third dimension of its grid."""

    __slots__ = ()

    @property
    def batch(self) -> Node:
        """The batch entry."""
        return tile.program_id(2)

    @property
    def head(self) -> Node:
        """The state head."""
        return tile.program_id(1)
