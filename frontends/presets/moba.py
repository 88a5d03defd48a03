"""Mixture of block attention: each query head chooses blocks by their mean key."""

from __future__ import annotations

from sparsec.frontends.activations import keys_values, queries
from sparsec.ir import build as lang
from sparsec.ir.node import Node


def moba(*, block: int = 512, k: int = 3) -> Node:
    """Top-k blocks per query head by q · mean key, the query's own block forced (MoBA, arXiv 2502.13189).

    Knobs:
        block: tokens per block.
        k: blocks per query and head, its own counted.
    """
    q, memory = queries(), keys_values(chunk=block)
    gates = lang.score(q, lang.summary(memory, size=block, stride=block), scale=1.0, detach=True)
    chosen = lang.topk(gates, k=k, size=block, scope="head", eligible="started", forced=f"c == i // {block}")
    return lang.attend(q, memory, chosen, lang.mask(memory, where="causal"))
