"""Log-linear attention: matrix states of a logarithmic number of levels, each weighted per token."""

from __future__ import annotations

from typing import Literal

from sparsec.frontends.recurrent import keys, log_decays, queries, rates, unit, values
from sparsec.ir import build as lang
from sparsec.ir.build_state import recall, state, write
from sparsec.ir.node import Node


def log_linear(
    *,
    rule: Literal["additive", "delta"] = "additive",
    levels: int = 16,
    raw: bool = False,
    initial: bool = False,
    final: bool = False,
) -> Node | tuple[Node, Node]:
    """o_t = D^-½ Σ_l lam_tl M_tlᵀq_t, level l holding the tokens s with bit_length(t xor s) = l (arXiv 2506.04761).

    All levels together are the state of Mamba-2 (additive) or of Gated DeltaNet (delta), whose output equal weights
    give. Inputs: q, k and v, log-decays g <= 0 ``[B,T,HKV]`` fp32, weights lam >= 0 ``[B,T,H,levels]`` fp32 of a
    token's own write (level 0), of its neighbour's (level 1), and of ever larger blocks. With the delta rule also the
    rate's logits b ``[B,T,HKV]``, beta = σ(b), and q and k are made unit vectors.

    Knobs:
        rule: additive or delta writes.
        levels: of states; T tokens need bit_length(T − 1) + 1, so 16 serve 32768.
        raw: queries, keys and beta ``[B,T,HKV]`` as they are given.
        initial: levels before the first token, at position q_offset, are an input m, fp32 ``[B,levels,HKV,D,DV]``.
        final: levels after the last token are a second output, shaped alike.
    """
    delta, q, k = rule == "delta", queries(), keys()
    if delta and not raw:
        q, k = unit(q), unit(k)
    first = lang.input("m", f"B {levels} HKV D DV float32") if initial else None
    bank = state(first, parts=levels, schedule="fenwick")
    written = write(bank, k, values(), rule=rule, beta=rates(raw) if delta else None, decay=log_decays())
    gate = lang.input("lam", f"B T H {levels} float32")
    o = recall(q, written, level_gate=gate, scale="rsqrt(D)")
    return (o, written) if final else o
