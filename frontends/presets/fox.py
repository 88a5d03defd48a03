"""Forgetting attention: softmax attention whose scores fade by the forget gates between key and query."""

from __future__ import annotations

from typing import Literal

from sparsec.frontends import patterns
from sparsec.frontends.activations import keys_values, queries
from sparsec.ir import build as lang
from sparsec.ir.node import Node


def fox(*, window: int = 0, gates: Literal["logits", "log"] = "logits") -> Node:
    """Causal attention under a forget gate per query head and token (FoX, arXiv 2503.02130).

    The score of query i and key j gets the sum of the log-gates of tokens j + 1 to i, summed in fp32 and not scaled.

    Knobs:
        window: tokens a query sees, its own among them; 0 for all earlier ones.
        gates: logits ``f[B,TK,H]`` whose log-sigmoid is the log of the gate, or that log as it is.
    """
    memory = keys_values()
    decay = lang.prefix(lang.input("f", "B TK H"), fn="log_sigmoid(x0)" if gates == "logits" else None)
    seen = lang.mask(memory, where=patterns.window(window) if window else "causal")
    fading = "score + (decay[b, i, h] - decay[b, j, h])"
    return lang.attend(queries(), memory, seen, bias=fading, decay=decay)
