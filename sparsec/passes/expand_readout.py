"""Readouts of several banks, as one read per bank and what merges them."""

from __future__ import annotations

from sparsec.ir.build import merge
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.rewrite import rewrite
from sparsec.ir.variant import Variant
from sparsec.passes.alter import altered


def expand_readout(variant: Variant) -> Variant:
    """A sum over the states of several banks is a sum of reads.

    recall(q, s, r){sum}  ->  merge(recall(q, s), recall(q, r)){sum}
    """
    return variant.with_outputs(rewrite(variant.outputs, (_sum,)))


def _sum(node: Node) -> Node | None:
    if node.op is not Op.RECALL or node["mode"] != "sum" or len(node.positional) == 2 or node.operands:
        return None
    q, *banks = node.positional
    return merge(*(altered(node, positional=(q, bank)) for bank in banks), fn="sum")
