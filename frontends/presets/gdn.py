"""Gated DeltaNet: one matrix state per head, decayed by a gate and written by the delta rule."""

from __future__ import annotations

from sparsec.frontends.recurrent import Shared, bank, counted, keys, log_decays, queries, rates, results, unit, values
from sparsec.ir.build_state import write
from sparsec.ir.node import Node


def gdn(
    *, shared: Shared = "states", raw: bool = False, initial: bool = False, final: bool = False
) -> Node | tuple[Node, ...]:
    """M = exp(g) M + beta k (v − Mᵀk)ᵀ, o = D^-½ Mᵀq, q and k of unit length (Gated DeltaNet, arXiv 2412.06464).

    Inputs: log-decays g <= 0 ``[B,T,HKV]`` fp32 and the rate's logits b ``[B,T,HKV]``; beta = σ(b).

    Knobs:
        shared: several query heads read one state (states), or several states have one key and query head (keys):
            q and k ``[B,T,H,D]``, the rest with HV heads in place of HKV.
        raw: queries, keys and beta ``[B,T,HKV]`` as they are given.
        initial: the states before the first token are an input m, fp32 ``[B,1,HKV,D,DV]``; otherwise zero.
        final: the states after the last token are a second output, fp32 ``[B,1,HKV,D,DV]``.
    """
    of_keys, heads = counted(shared)
    q, k = (x if raw else unit(x) for x in (queries(), keys(of_keys)))
    gates = {"beta": rates(raw, heads), "decay": log_decays(heads=heads)}
    written = write(bank(initial, heads), k, values(heads), rule="delta", **gates)  # type: ignore[arg-type]
    return results(q, written, final)
