"""What a level leaves to the next, as a read of its states and a function of tokens."""

from __future__ import annotations

from sparsec.ir.build import map as mapped
from sparsec.ir.build_state import recall
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.rewrite import rewrite
from sparsec.ir.variant import Variant
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.functions import maximum, minimum


def expand_residual(variant: Variant) -> Variant:
    """A residual is a recall by the write's own keys, and what it lacks, clipped and weighed.

    residual(v, s, k, gamma){post, clip = c}
      ->  map(v, recall(k, s){after}, gamma){x2 · min(max(x0 − x1, −c), c)}        pre: before
    """
    return variant.with_outputs(rewrite(variant.outputs, (_read,)))


def _read(node: Node) -> Node | None:
    if node.op is not Op.RESIDUAL:
        return None
    v, written, k = node.positional
    when = "after" if node["mode"] == "post" else "before"
    known = recall(k, written, when=when, renormalise=node.flag("renormalise"))
    gamma = node.operands.get("gamma")
    sources = (v, known) if gamma is None else (v, known, gamma)
    return mapped(*sources, fn=_left(node, gamma is not None), align="none" if gamma is None else "heads")


def _left(node: Node, weighed: bool) -> Expr:
    """gamma · clip(v − recall)."""
    left, clip = var("x0", "float") - var("x1", "float"), node["clip"]
    if isinstance(clip, float | int):
        left = minimum(maximum(left, -float(clip)), float(clip))
    return var("x2", "float") * left if weighed else left
