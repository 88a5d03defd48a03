"""Gated DeltaNet: one matrix state per head, decayed by a gate and written by the delta rule."""

from __future__ import annotations

from sparsec.frontends.recurrent import queries, unit, written
from sparsec.ir import build as lang
from sparsec.ir.build_state import recall, state
from sparsec.ir.node import Node


def gdn() -> Node:
    """M = exp(g) M + beta k (v − Mᵀk)ᵀ, o = D^-½ Mᵀq, q and k of unit length (Gated DeltaNet, arXiv 2412.06464).

    Inputs: log-decays g <= 0 and the rate's logits b ``[B,T,HKV]``; beta = sigmoid(b).
    """
    k, v = unit(lang.input("k", "B T HKV D")), lang.input("v", "B T HKV DV")
    return recall(unit(queries()), written(state(), k, v, "", rule="delta"), scale="rsqrt(D)")
