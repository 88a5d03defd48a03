"""DeltaNet: a state that is corrected towards the value at its key."""

from __future__ import annotations

from sparsec.frontends.recurrent import bank, keys, queries, rates, results, unit, values
from sparsec.ir.build_state import write
from sparsec.ir.node import Node


def deltanet(*, raw: bool = False, initial: bool = False, final: bool = False) -> Node | tuple[Node, ...]:
    """M = M + beta k (v − Mᵀk)ᵀ, o = D^-½ Mᵀq, q and k of unit length (DeltaNet, arXiv 2406.06484).

    Inputs: the rate's logits b ``[B,T,HKV]``; beta = σ(b).

    Knobs:
        raw: queries, keys and beta ``[B,T,HKV]`` as they are given.
        initial: the states before the first token are an input m, fp32 ``[B,1,HKV,D,DV]``; otherwise zero.
        final: the states after the last token are a second output, fp32 ``[B,1,HKV,D,DV]``.
    """
    q, k = (x if raw else unit(x) for x in (queries(), keys()))
    return results(q, write(bank(initial), k, values(), rule="delta", beta=rates(raw)), final)
