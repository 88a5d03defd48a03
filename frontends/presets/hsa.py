"""Hierarchical sparse attention: retrieve chunks by landmarks, attend inside each, merge by retrieval weights."""

from __future__ import annotations

from typing import Any, Literal

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
    sections: int = 0,
    fanout: int = 8,
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
        sections: sections of ``fanout`` chunks that are chosen first, beside the query's own, by landmarks of their own
            (input ls, or their mean keys); chunks are then chosen in them.
        fanout: chunks per section; chunks are chosen from all where this or ``sections`` is 0.
    """
    q, pages = queries(), keys_values(chunk=chunk)
    dim = "D" if "mean" in landmark + retrieval else "DR"
    r = lang.input("r", f"B TQ HKV {dim}") if retrieval == "given" else q

    def scored(name: str, size: int) -> Node:
        if landmark == "given":
            marks = lang.input(name, f"B, (TK + {size - 1}) // {size}, HKV, {dim}")
        else:
            marks = lang.summary(pages, size=size, stride=size)
        scores = lang.score(r, marks)
        return lang.reduce(scores, over="group", op="mean") if retrieval == "group_mean" else scores

    scores, section = scored("l", chunk), chunk * fanout
    past = f"(c + 1) * {chunk} <= i - {window - chunk}" if outside_window and window else "complete_past"
    within: dict[str, Any] = {}
    if sections and fanout:
        above = _above(scored("ls", section), section, sections)
        within = {"within": above, "fanout": fanout}
    chosen = lang.topk(
        scores, k=k, size=chunk, eligible=past, order="newest", selector_gradient="through_weights", **within
    )
    w = lang.weights(scores, chosen, fn=weights)
    far = lang.attend(q, pages, chosen, weights=w, per="chunk", sink=sink)
    if not window:
        return far
    near = lang.attend(q, pages, lang.mask(pages, where=patterns.window(window)))
    both = (gate("chunks", gates), gate("window", gates)) if merge == "gate" else ()
    return lang.merge(far, near, gates=both, fn="gated" if both else "sum")


def _above(scores: Node, size: int, count: int) -> Node:
    """The best sections that have started, the query's own first."""
    return lang.topk(scores, k=count + 1, size=size, eligible=f"c * {size} <= i", forced=f"c == i // {size}")
