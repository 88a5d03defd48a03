"""How the dims of a map's sources are told apart: aligned at their last dims, or at their heads."""

from __future__ import annotations

from sparsec.ir.node import Node, Shape
from sparsec.scalar.expr import constant


def lifted(node: Node, source: Node) -> bool:
    """Whether a source has one number where the others have a row: under ``align = heads`` it has fewer dims."""
    if dict(node.attrs).get("align") != "heads":
        return False
    return len(source.shape) < max(len(other.shape) for other in node.src)


def aligned(node: Node) -> list[Shape]:
    """The shapes of a map's sources, to be compared from the last dim: ``[B,T,H]`` as ``[B,T,H,1]`` where lifted."""
    return [(*source.shape, constant(1)) if lifted(node, source) else source.shape for source in node.src]
