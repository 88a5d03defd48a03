"""RetNet: linear attention whose state fades at a rate of its own per head."""

from __future__ import annotations

from sparsec.frontends.recurrent import bank, keys, log_decays, queries, results, values
from sparsec.ir.build_state import write
from sparsec.ir.node import Node


def retnet(*, initial: bool = False, final: bool = False) -> Node | tuple[Node, ...]:
    """M = exp(g) M + k vᵀ, o = D^-½ Mᵀq (RetNet, arXiv 2307.08621).

    Inputs: log-decays g ``[B,T,HKV]`` fp32, which are log(1 − 2^(−5−h)) for every token; a tensor
    ``[HKV]`` may be expanded.

    Knobs:

        initial: the states before the first token are an input m, fp32 ``[B,1,HKV,D,DV]``; otherwise zero.
        final: the states after the last token are a second output, fp32 ``[B,1,HKV,D,DV]``.
    """
    return results(queries(), write(bank(initial), keys(), values(), decay=log_decays()), final)
