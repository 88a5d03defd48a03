"""DeepSeek sparse attention: single tokens chosen by a lightning indexer, one list for all heads."""

from __future__ import annotations

from typing import Literal

from sparsec.frontends.activations import keys_values, queries
from sparsec.ir import build as lang
from sparsec.ir.build_state import aux
from sparsec.ir.node import Node


def dsa(*, k: int = 2048, training: Literal["none", "kl", "warm_up"] = "none") -> Node | tuple[Node, Node]:
    """The k best tokens per query by an indexer with ReLU, then one softmax over them (DSA, arXiv 2512.02556).

    The indexer has queries ``q_index[B,TQ,HI,DI]``, one key per token ``k_index[B,TK,1,DI]`` and a weight per query and
    head ``w_index[B,TQ,HI]``. Its gradient comes from the auxiliary loss ``[B,TQ,1]`` alone, one number per query.

    Knobs:
        k: tokens per query.
        training: kl returns the indexer's loss over the chosen too; warm_up attends to all and compares all tokens.
    """
    q, memory = queries(), keys_values()
    index = lang.tokens(lang.input("k_index", "B TK 1 DI"))
    q_index, w_index = lang.input("q_index", "B TQ HI DI"), lang.input("w_index", "B TQ HI")
    scores = lang.score(q_index, index, fn="indexer", scale="rsqrt(DI) * rsqrt(HI)", head_weights=w_index)
    past = lang.mask(memory, where="causal")
    if training == "warm_up":
        dense = lang.attend(q, memory, past)
        loss = aux(scores, target=dense, fn="kl")
        return dense, loss
    gradient = "kl" if training == "kl" else "none"
    chosen = lang.topk(scores, k=k, unit="token", scope="token", eligible="c <= i", selector_gradient=gradient)
    o = lang.attend(q, memory, chosen)
    if training == "none":
        return o
    loss = aux(scores, chosen, target=o, fn="kl")
    return o, loss
