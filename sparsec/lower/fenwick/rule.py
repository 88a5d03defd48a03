"""Products of gradients with T = I + L, the inverse that a delta rule solves with in each chunk."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.fenwick.frame import Frame
from sparsec.lower.scan.chunk.operands import times
from sparsec.tile import build as tile
from sparsec.tile.language import Node


@dataclass(frozen=True, slots=True)
class Rule:
    """A frame, and products with T."""

    f: Frame

    def left(self) -> Node:
        """L ``[t,n]``."""
        f = self.f
        return f.chunk.tile_of(f.b.own.solved, f.at.middle, tile.iota(f.axes.keys))

    def solve(self, x: Node) -> Node:
        """T x: ``[n,·]`` -> ``[n,·]``."""
        f, a = self.f, self.f.axes
        start = tile.rename(tile.cast(x, "float32"), a.keys, f.at.middle)
        return tile.rename(f.dot(self.left(), x, a.keys, start), f.at.middle, a.keys)

    def unsolve(self, x: Node) -> Node:
        """Tᵀ x: ``[n,·]`` -> ``[n,·]``."""
        f, a = self.f, self.f.axes
        return f.dot(self.left(), tile.rename(x, a.keys, f.at.middle), f.at.middle, tile.cast(x, "float32"))

    def after(self, x: Node) -> Node:
        """x Tᵀ: ``[·,n]`` -> ``[·,n]``, where the first axis is the queries'."""
        f, a = self.f, self.f.axes
        other = f.dot(x, self.left(), a.keys, tile.rename(x, a.keys, f.at.middle))
        return tile.rename(other, f.at.middle, a.keys)

    def ends(self) -> Node | None:
        """beta e^{Γ_C − Γ} ``[n]``."""
        return times(self.f.chunk.left(self.f.axes.keys), self.f.chunk.beta(self.f.axes.keys))

    def of_solved(self, grad: Node, solved: Node) -> Node:
        """dT ``[t,n]``."""
        f, a = self.f, self.f.axes
        return f.dot(tile.rename(f.at.seen(), a.keys, f.at.middle), grad, a.queries, solved)
