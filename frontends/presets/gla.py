"""Gated linear attention: a decay per key channel."""

from __future__ import annotations

from sparsec.frontends.recurrent import bank, keys, log_decays, queries, results, values
from sparsec.ir import build as lang
from sparsec.ir.build_state import write
from sparsec.ir.node import Node


def gla(*, raw: bool = False, initial: bool = False, final: bool = False) -> Node | tuple[Node, ...]:
    """M = diag(exp(g)) M + k vᵀ, o = D^-½ Mᵀq (GLA, arXiv 2312.06635).

    Inputs: the gates' logits f ``[B,T,HKV,D]``; g = log σ(f) / 16.

    Knobs:
        raw: log-decays g ``[B,T,HKV,D]`` fp32 as they are given.
        initial: the states before the first token are an input m, fp32 ``[B,1,HKV,D,DV]``; otherwise zero.
        final: the states after the last token are a second output, fp32 ``[B,1,HKV,D,DV]``.
    """
    decay = log_decays("D") if raw else lang.map(lang.input("f", "B T HKV D"), fn="log_sigmoid(x0) * 0.0625")
    return results(queries(), write(bank(initial), keys(), values(), decay=decay), final)
