"""EverMind memory sparse attention: a question picks documents once, and reads their pooled keys and values."""

from __future__ import annotations

from typing import Literal

from sparsec.frontends.activations import keys_values, queries
from sparsec.ir import build as lang
from sparsec.ir.error import DeclarationError
from sparsec.ir.node import Node


def evermind(
    *,
    document: int = 1024,
    pool: int = 64,
    k: int = 16,
    score: Literal["cosine", "dot"] = "cosine",
    heads: Literal["mean", "max"] = "mean",
) -> Node:
    """The k best documents per question, pooled, and the local tokens in one softmax (EverMind MSA, arXiv 2603.23516).

    The bank is ``k_docs[B,TM,HKV,D]``, ``v_docs[B,TM,HKV,DV]``, rotated from 0 in every document; a router has
    ``q_router[B,TQ,H,DR]`` and ``k_router[B,TM,HKV,DR]``. A document scores by its best pooled key for any query. The
    local keys are the prefix and the question itself. Router and choice have no gradient: they learn by a loss outside.

    Knobs:
        document: tokens per document, a multiple of pool; the last one may be shorter.
        pool: tokens whose keys, values and router keys are averaged.
        k: documents per question.
        score: cosine of router query and key, or their dot product over the root of DR.
        heads: how the router's heads agree on a score.
    """
    if document < 1 or pool < 1 or document % pool:
        said, fix = f"document = {document}, pool = {pool}", f"pool = {max(pool, 1)}, document = {16 * max(pool, 1)}"
        raise DeclarationError("preset evermind", said, "a document holds whole pools", fix)
    q, local = queries(), keys_values()
    bank = lang.tokens(lang.input("k_docs", "B TM HKV D"), lang.input("v_docs", "B TM HKV DV"))
    marks = lang.summary(lang.tokens(lang.input("k_router", "B TM HKV DR")), size=pool, stride=pool)
    asked = lang.input("q_router", "B TQ H DR")
    each = lang.score(asked, marks, fn=score, scale=1.0 if score == "cosine" else None, detach=True)
    best = lang.reduce(lang.reduce(each, over="heads", op=heads), over="queries", op="max")
    per = document // pool
    worth = lang.reduce(best, over="blocks", op="max", kernel=per, stride=per)
    chosen = lang.topk(worth, k=k, size=document, scope="query_set")
    near = lang.attend(q, local, lang.mask(local, where="causal"))
    far = lang.attend(q, lang.summary(bank, size=pool, stride=pool, fields="kv"), chosen)
    return lang.merge(near, far, fn="lse")
