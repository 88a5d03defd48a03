"""HGRN2: gated linear attention whose keys are what the forget gate leaves."""

from __future__ import annotations

from sparsec.frontends.recurrent import bank, keys, log_decays, queries, results, values
from sparsec.ir import build as lang
from sparsec.ir.build_state import write
from sparsec.ir.error import DeclarationError
from sparsec.ir.node import Node


def hgrn2(
    *, lower: float = 0.0, raw: bool = False, initial: bool = False, final: bool = False
) -> Node | tuple[Node, ...]:
    """M = diag(f) M + (1 − f) vᵀ, o = D^-½ Mᵀ silu(q), f = lower + (1 − lower) σ(logits) (HGRN2, arXiv 2404.07904).

    Inputs: q, v and the gates' logits f ``[B,T,HKV,D]``.

    Knobs:
        lower: the least that the forget gate may be, which grows with a layer's depth.
        raw: queries q, keys k = 1 − f and log-decays g = log f ``[B,T,HKV,D]`` fp32 as they are given.
        initial: the states before the first token are an input m, fp32 ``[B,1,HKV,D,DV]``; otherwise zero.
        final: the states after the last token are a second output, fp32 ``[B,1,HKV,D,DV]``.
    """
    if not 0 <= lower < 1:
        raise DeclarationError("preset hgrn2", f"lower = {lower}", "a forget gate lies between it and 1", "lower = 0.0")
    if raw:
        return results(queries(), write(bank(initial), keys(), values(), decay=log_decays("D")), final)
    f = lang.input("f", "B T HKV D")
    decay = lang.map(f, fn=f"log({lower} + {1 - lower} * sigmoid(x0))" if lower else "log_sigmoid(x0)")
    written = write(bank(initial), lang.map(f, fn=f"{1 - lower} * sigmoid(-x0)"), values(), decay=decay)
    return results(lang.map(queries(), fn="x0 * sigmoid(x0)"), written, final)
