"""MiniMax sparse attention: an indexer scores tokens, the best of a block stands for it, a list per key/value head."""

from __future__ import annotations

from typing import Literal

from sparsec.frontends.activations import keys_values, queries
from sparsec.ir import build as lang
from sparsec.ir.build_state import aux
from sparsec.ir.node import Node


def minimax(*, block: int = 128, k: int = 16, training: Literal["none", "kl"] = "none") -> Node | tuple[Node, Node]:
    """Top-k blocks per key/value head by an indexer's best token, its own block forced (MiniMax MSA, arXiv 2606.13392).

    The indexer has a query per key/value head ``q_index[B,TQ,HKV,DI]`` and a key that all share ``k_index[B,TK,1,DI]``.
    Its gradient comes from the auxiliary loss ``[B,TQ,HKV]`` alone: the divergence of its scores of the tokens in the
    chosen blocks from the attention that they got.

    Knobs:
        block: tokens per block.
        k: blocks per query and key/value head, its own counted.
        training: kl returns the indexer's loss too.
    """
    q, memory = queries(), keys_values(chunk=block)
    index = lang.tokens(lang.input("k_index", "B TK 1 DI"))
    tokens = lang.score(lang.input("q_index", "B TQ HKV DI"), index)
    best = lang.reduce(tokens, over="blocks", op="max", kernel=block, stride=block, visible="c <= i")
    learns = "kl" if training == "kl" else "none"
    own = f"c == i // {block}"
    chosen = lang.topk(best, k=k, size=block, eligible="started", forced=own, selector_gradient=learns)
    o = lang.attend(q, memory, chosen, lang.mask(memory, where="causal"))
    if training == "none":
        return o
    loss = aux(tokens, chosen, target=o, fn="kl")
    return o, loss
