"""Gated DeltaProduct: each token corrects its state several times, which turns it by products of reflections."""

from __future__ import annotations

from sparsec.frontends.recurrent import bank, keys, log_decays, queries, rates, results, several, unit, values
from sparsec.ir import build as lang
from sparsec.ir.build_state import write
from sparsec.ir.node import Node


def delta_product(
    *,
    steps: int = 2,
    gated: bool = True,
    negative: bool = True,
    raw: bool = False,
    initial: bool = False,
    final: bool = False,
) -> Node | tuple[Node, ...]:
    """M = exp(g) M, then M = M + beta k (v − Mᵀk)ᵀ for each step, o = D^-½ Mᵀq (DeltaProduct, arXiv 2502.10297).

    Inputs: keys k ``[B,T,n·HKV,D]`` and values v ``[B,T,n·HKV,DV]`` of n steps, those of the first step first (a view
    of ``[B,T,n,HKV,D]``), logits b ``[B,T,n·HKV]`` of the rates, log-decays g <= 0 ``[B,T,HKV]`` fp32. q and k become
    unit vectors.

    Knobs:
        steps: n, the Householder steps of a token; it decays once, before the first, and reads after the last.
        gated: with decays; without them DeltaProduct, with a state per query head (H in place of HKV).
        negative: beta = 2 σ(b), so that a step may reflect; else σ(b).
        raw: queries, keys and beta ``[B,T,n·HKV]`` as they are given.
        initial: the states before the first token are an input m, fp32 ``[B,1,HKV,D,DV]``; otherwise zero.
        final: the states after the last token are a second output, fp32 ``[B,1,HKV,D,DV]``.
    """
    heads = "HKV" if gated else "H"
    each = several(steps, heads)
    q, k = (x if raw else unit(x) for x in (queries(), keys(each)))
    beta = lang.map(lang.input("b", f"B T {each}"), fn="2 * sigmoid(x0)") if negative and not raw else rates(raw, each)
    decay = log_decays() if gated else None
    before = bank(initial, heads)
    return results(q, write(before, k, values(each), rule="delta", beta=beta, decay=decay, steps=steps), final)
