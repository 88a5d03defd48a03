"""Mamba-2: a state that fades by an input-dependent step, which also scales what is written."""

from __future__ import annotations

from sparsec.frontends.recurrent import (
    Shared,
    bank,
    counted,
    keys,
    log_decays,
    queries,
    rates,
    results,
    values,
)  # fmt: skip
from sparsec.ir import build as lang
from sparsec.ir.build_state import write
from sparsec.ir.node import Node

STEP = "softplus(x0 + x1)"


def mamba2(
    *, shared: Shared = "states", raw: bool = False, initial: bool = False, final: bool = False
) -> Node | tuple[Node, ...]:
    """M = exp(Δ A) M + Δ k vᵀ, o = Mᵀq, with C, B and x of the paper as q, k and v (Mamba-2, arXiv 2405.21060).

    Inputs: the step's logits dt ``[B,T,HKV]``, A_log and dt_bias ``[HKV]``, all fp32; Δ = softplus(dt + dt_bias) and
    A = −exp(A_log). The skip D x, the gate and the convolution are left to the caller.

    Knobs:
        shared: several query heads read one state (states), or several states have one key and query head (keys):
            q and k ``[B,T,H,D]``, the rest with HV heads in place of HKV.
        raw: Δ as beta ``[B,T,HKV]`` and Δ A as log-decays g fp32, as they are given.
        initial: the states before the first token are an input m, fp32 ``[B,1,HKV,D,DV]``; otherwise zero.
        final: the states after the last token are a second output, fp32 ``[B,1,HKV,D,DV]``.
    """
    of_keys, heads = counted(shared)
    if raw:
        beta, decay = rates(heads=heads), log_decays(heads=heads)
    else:
        dt, a = lang.input("dt", f"B T {heads} float32"), lang.input("A_log", f"{heads} float32")
        beta = lang.map(dt, lang.input("dt_bias", f"{heads} float32"), fn=STEP)
        decay = lang.map(beta, a, fn="-x0 * exp(x1)")
    written = write(bank(initial, heads), keys(of_keys), values(heads), beta=beta, decay=decay)
    return results(queries(), written, final, scale=1.0)
