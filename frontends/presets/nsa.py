"""Native sparse attention: compressed, selected and window branches under gates."""

from __future__ import annotations

from typing import Literal

from sparsec.frontends import patterns
from sparsec.frontends.activations import Gates, gate, keys_values, queries
from sparsec.ir import build as lang
from sparsec.ir.error import DeclarationError
from sparsec.ir.node import Node
from sparsec.ir.suggest import did_you_mean

BRANCHES = ("cmp", "slc", "swa")


def nsa(
    *,
    block: int = 64,
    k: int = 16,
    size: int = 32,
    stride: int = 16,
    window: int = 512,
    selection: Literal["scored", "given"] = "scored",
    query_block: int = 1,
    importance: Literal["overlap", "paper_literal"] = "overlap",
    branches: str = "cmp+slc+swa",
    kv: Literal["shared", "separate"] = "shared",
    gates: Gates = "sigmoid",
    rounding: Literal["none", "storage"] = "none",
) -> Node:
    """Three gated branches; blocks chosen by the compression's probabilities (NSA, arXiv 2502.11089).

    Compression is the mean of a window's keys and values. Blocks 0, the query's own and the one before are forced.

    Knobs:
        block: tokens per selected block.
        k: blocks per query and key/value head, the 3 forced ones counted.
        size: tokens per compressed window.
        stride: tokens from one window to the next.
        window: tokens of the sliding window.
        selection: scored by the compression branch, or given as input indices ``[B,TQ,HKV,k]``, -1 where there is none.
        query_block: queries that share a given list, counted from the first: ``[B,ceil(TQ / query_block),HKV,k]``.
        importance: of a block: over the windows that overlap it, or the paper's formula taken literally.
        branches: which of cmp, slc, swa there are, joined by +; a single one has no gate.
        kv: one set of keys and values, or one per branch as in the paper.
        gates: sigmoid of the inputs g_cmp, g_slc, g_swa, or the inputs as given.
        rounding: blocks are scored by summaries as they are, or rounded to the inputs' dtype as they are attended to.
    """
    wanted = branches.split("+")
    for word in wanted:
        if word not in BRANCHES:
            fix = did_you_mean(word, BRANCHES)
            raise DeclarationError("preset nsa", f"branches = {branches}", f"`{word}` is no branch", fix)
    q = queries()
    memory = {name: keys_values(name if kv == "separate" else "", chunk=block) for name in BRANCHES}
    summaries = lang.summary(memory["cmp"], size=size, stride=stride, fields="kv")
    outputs: dict[str, Node] = {}
    if "cmp" in wanted:
        complete = lang.mask(summaries, where=f"j * {stride} + {size - 1} <= i")
        outputs["cmp"] = lang.attend(q, summaries, complete)
    if "slc" in wanted:
        scored = selection == "scored"
        how = (importance, rounding)
        indices = _scored(q, summaries, k, block, *how) if scored else _given(k, block, query_block)
        outputs["slc"] = lang.attend(q, memory["slc"], indices, lang.mask(memory["slc"], where="causal"))
    if "swa" in wanted:
        outputs["swa"] = lang.attend(q, memory["swa"], lang.mask(memory["swa"], where=patterns.window(window)))
    if len(outputs) == 1:
        return outputs[wanted[0]]
    return lang.merge(*outputs.values(), gates=[gate(name, gates) for name in outputs], fn="gated")


def _given(k: int, block: int, query_block: int) -> Node:
    rows = f"(TQ + {query_block - 1}) // {query_block}" if query_block > 1 else "TQ"
    return lang.given(lang.input("indices", f"B, {rows}, HKV, {k}", "int32"), size=block, query_block=query_block)


def _scored(q: Node, summaries: Node, k: int, block: int, importance: str, rounding: str) -> Node:
    if k < 3:
        raise DeclarationError("preset nsa", f"k = {k}", "k counts the 3 forced blocks", "k = 3 or more")
    size, stride = summaries.integer("size"), summaries.integer("stride")
    seen = f"c * {stride} + {size - 1} <= i"
    shares = lang.reduce(lang.score(q, summaries, rounding=rounding), over="group", pre="softmax", visible=seen)
    worth = lang.reduce(shares, over="overlap", size=size, stride=stride, block=block, importance=importance)
    forced = f"(c == 0) | (c == i // {block} - 1) | (c == i // {block})"
    return lang.topk(worth, k=k, size=block, eligible="started", forced=forced)
