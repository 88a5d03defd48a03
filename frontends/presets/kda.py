"""Kimi Delta Attention: the delta rule with a decay per key channel."""

from __future__ import annotations

from sparsec.frontends.recurrent import Shared, bank, counted, keys, log_decays, queries, rates, results, unit, values
from sparsec.ir import build as lang
from sparsec.ir.build_state import write
from sparsec.ir.node import Node


def kda(
    *, bound: float = 5.0, shared: Shared = "states", raw: bool = False, initial: bool = False, final: bool = False
) -> Node | tuple[Node, ...]:
    """M = diag(exp(g)) M + beta k (v − (diag(exp(g)) M)ᵀk)ᵀ, o = D^-½ Mᵀq (Kimi Linear, arXiv 2510.26692).

    Inputs: the rate's logits b ``[B,T,HKV]`` and the gates' f ``[B,T,HKV,D]``, A_log ``[HKV,1]`` and dt_bias
    ``[HKV,D]`` fp32; beta = σ(b), g = −bound · σ(exp(A_log) (f + dt_bias)); q and k become unit vectors.

    Knobs:
        bound: how far below 0 a log-decay may go.
        shared: several query heads read one state (states), or several states have one key and query head (keys):
            q and k ``[B,T,H,D]``, the rest with HV heads in place of HKV.
        raw: queries, keys, beta and log-decays g ``[B,T,HKV,D]`` fp32 as they are given.
        initial: the states before the first token are an input m, fp32 ``[B,1,HKV,D,DV]``; otherwise zero.
        final: the states after the last token are a second output, fp32 ``[B,1,HKV,D,DV]``.
    """
    of_keys, heads = counted(shared)
    q, k = (x if raw else unit(x) for x in (queries(), keys(of_keys)))
    decay = log_decays("D", heads) if raw else _gates(bound, heads)
    return results(
        q, write(bank(initial, heads), k, values(heads), rule="delta", beta=rates(raw, heads), decay=decay), final
    )


def _gates(bound: float, heads: str) -> Node:
    rate, shift = lang.input("A_log", f"{heads} 1 float32"), lang.input("dt_bias", f"{heads} D float32")
    return lang.map(lang.input("f", f"B T {heads} D"), rate, shift, fn=f"{-bound} * sigmoid(exp(x1) * (x0 + x2))")
