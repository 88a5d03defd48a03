"""Hierarchical sparse attention: retrieve chunks by landmarks, attend inside each, merge by retrieval weights."""

from __future__ import annotations

from typing import Literal

from sparsec.frontends import patterns
from sparsec.frontends.activations import Gates, gate, keys_values, queries
from sparsec.ir import build as lang
from sparsec.ir.node import Node


def hsa(
    *,
    chunk: int = 64,
    k: int = 8,
    weights: Literal["stick", "softmax"] = "stick",
    sink: Literal["none", "zero"] = "none",
    landmark: Literal["given", "mean"] = "given",
    retrieval: Literal["given", "group_mean"] = "given",
    window: int = 0,
    outside_window: bool = False,
    merge: Literal["gate", "sum"] = "gate",
    gates: Gates = "sigmoid",
) -> Node:
    """Chunks retrieved per key/value head, read one by one, merged by learned weights (HSA, arXiv 2504.16795).

    Knobs:
        chunk: tokens per chunk.
        k: chunks per query and key/value head.
        weights: stick-breaking from the newest chunk (RAMba), or softmax over the chosen (UltraLong).
        sink: a zero logit in each chunk's softmax (off by one), or none.
        landmark: one vector per chunk as input l, or the mean of the chunk's keys.
        retrieval: queries for landmarks as input r, or the mean score of the group's attention queries.
        window: tokens of a window branch over the same keys; 0 for none.
        outside_window: whether chunks inside the window may not be chosen.
        merge: the window branch joins by gates, or as a plain sum.
        gates: sigmoid of the inputs g_chunks and g_window, or the inputs as given.
    """
    q, pages = queries(), keys_values(chunk=chunk)
    dim = "D" if "mean" in landmark + retrieval else "DR"
    if landmark == "given":
        marks = lang.input("l", f"B, (TK + {chunk - 1}) // {chunk}, HKV, {dim}")
    else:
        marks = lang.summary(pages, size=chunk, stride=chunk)
    r = lang.input("r", f"B TQ HKV {dim}") if retrieval == "given" else q
    scores = lang.score(r, marks)
    if retrieval == "group_mean":
        scores = lang.reduce(scores, over="group", op="mean")
    past = f"(c + 1) * {chunk} <= i - {window - chunk}" if outside_window and window else "complete_past"
    chosen = lang.topk(scores, k=k, size=chunk, eligible=past, order="newest", selector_gradient="through_weights")
    w = lang.weights(scores, chosen, fn=weights)
    far = lang.attend(q, pages, chosen, weights=w, per="chunk", sink=sink)
    if not window:
        return far
    near = lang.attend(q, pages, lang.mask(pages, where=patterns.window(window)))
    both = (gate("chunks", gates), gate("window", gates)) if merge == "gate" else ()
    return lang.merge(far, near, gates=both, fn="gated" if both else "sum")
