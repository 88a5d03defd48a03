"""Gated DeltaNet 2: what is erased and what is written have gates per channel."""

from __future__ import annotations

from sparsec.frontends.recurrent import bank, keys, log_decays, queries, results, unit, values
from sparsec.ir import build as lang
from sparsec.ir.build_state import write
from sparsec.ir.node import Node


def gdn2(*, raw: bool = False, initial: bool = False, final: bool = False) -> Node | tuple[Node, ...]:
    """M = F − k (Fᵀ(b ⊙ k))ᵀ + k (w ⊙ v)ᵀ with F = diag(exp(g)) M, o = D^-½ Mᵀq (Gated DeltaNet 2, arXiv 2605.22791).

    Inputs: log-decays g ``[B,T,HKV,D]`` fp32, logits b ``[B,T,HKV,D]`` of what is erased and w ``[B,T,HKV,DV]`` of what
    is written, which go through σ; q and k become unit vectors.

    Knobs:
        raw: queries and keys as they are given, a = −b ⊙ k given in place of b, and values that w has scaled.
        initial: the states before the first token are an input m, fp32 ``[B,1,HKV,D,DV]``; otherwise zero.
        final: the states after the last token are a second output, fp32 ``[B,1,HKV,D,DV]``.
    """
    q, k = (x if raw else unit(x) for x in (queries(), keys()))
    v = values()
    if raw:
        a = lang.input("a", "B T HKV D")
    else:
        a = lang.map(k, lang.input("b", "B T HKV D"), fn="-x0 * sigmoid(x1)")
        v = lang.map(v, lang.input("w", "B T HKV DV"), fn="x0 * sigmoid(x1)")
    written = write(bank(initial), k, v, rule="delta", decay=log_decays("D"), erase_a=a, erase_b=k)
    return results(q, written, final)
