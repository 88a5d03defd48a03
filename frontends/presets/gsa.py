"""Gated slot attention: a few slots with keys and values that fade, each by its own gate."""

from __future__ import annotations

from sparsec.frontends.recurrent import keys, queries, values
from sparsec.ir import build as lang
from sparsec.ir.build_state import recall, state, write
from sparsec.ir.error import DeclarationError
from sparsec.ir.node import Node


def gsa(*, raw: bool = False, normaliser: float = 8.0) -> Node:
    """o = Vᵀ softmax(D^-½ K q) over M slots, K = diag(e^g) K + s kᵀ and V = diag(e^g) V + s vᵀ (GSA, arXiv 2409.07146).

    Inputs: q, k, v, and logits f ``[B,T,HKV,M]`` of the gates: g = log σ(f) / normaliser, s = 1 − e^g.

    Knobs:
        raw: slots' shares s and log-decays g <= 0 fp32 ``[B,T,HKV,M]`` are given in place of f.
        normaliser: what the logarithms of gates are divided by.
    """
    if not normaliser:
        raise DeclarationError(
            "gsa", f"normaliser = {normaliser}", "logarithms of gates are divided by it", "such as 8.0"
        )
    if raw:
        s, g = lang.input("s", "B T HKV M"), lang.input("g", "B T HKV M float32")
    else:
        f = lang.input("f", "B T HKV M")
        g = lang.map(f, fn=f"log_sigmoid(x0) / {normaliser}")
        s = lang.map(f, fn=f"1 - exp(log_sigmoid(x0) / {normaliser})")
    held = write(state(rows="M", cols="D"), s, keys(), decay=g, decay_kind="key")
    read = write(state(rows="M"), s, values(), decay=g, decay_kind="key")
    q = lang.map(queries(), fn="x0 * rsqrt(D) * rsqrt(D)")
    return recall(q, read, held, mode="slot_softmax")
