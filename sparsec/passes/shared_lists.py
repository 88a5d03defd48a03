"""Lists that all queries share as masks: what every query reads is a dense piece, tile by tile."""

from __future__ import annotations

from sparsec.ir import build
from sparsec.ir.adjoint import passes_straight
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.origin import written_as
from sparsec.ir.rewrite import rewrite
from sparsec.ir.scores import stride
from sparsec.ir.variant import Variant
from sparsec.passes.alter import with_selections

NAME = "members"
"""What masks call the units of a list."""


def shared_lists_to_masks(variant: Variant) -> Variant:
    """A list for a whole set of queries is a predicate over keys.

    attend(q, m, topk(s){scope = query_set, size})  ->  attend(q, m, mask(m){members[b, j // rows] > 0})

    A straight-through list stays: a mask passes no gradient.
    """
    return variant.with_outputs(rewrite(variant.outputs, (as_mask,)))


def as_mask(node: Node) -> Node | None:
    """The attend with masks for its shared lists."""
    if node.op is not Op.ATTEND or node["per"] != "joint":
        return None
    selections = [_mask(node, s) if _shared(s) else s for s in node.positional[2:]]
    return with_selections(node, selections) if selections != list(node.positional[2:]) else None


def _shared(selection: Node) -> bool:
    return selection.op is Op.TOPK and selection.word("scope") == "query_set" and not passes_straight(selection)


def _mask(attend: Node, selection: Node) -> Node:
    memory = attend.src[1]
    rows = selection.integer("size") // (stride(memory) if memory.op is Op.SUMMARY else 1)
    with written_as(selection):
        held = build.members(selection)
        return build.mask(memory, where=f"{NAME}[b, j // {rows}] > 0", **{NAME: held})
