"""Mamba-1: every channel is a head of its own, whose rows fade each at a rate of its own."""

from __future__ import annotations

from sparsec.frontends.presets.mamba2 import STEP
from sparsec.frontends.recurrent import bank, keys, queries, results, values
from sparsec.ir import build as lang
from sparsec.ir.build_state import write
from sparsec.ir.node import Node


def mamba1(*, initial: bool = False, final: bool = False) -> Node | tuple[Node, ...]:
    """M = exp(Δ A) ⊙ M + Δ B xᵀ, o = Mᵀ C, a decay per row of each channel's state (Mamba, arXiv 2312.00752).

    A decay per element of a ``[D,channels]`` state is one per row of ``channels`` states of a single column: the HV
    heads are channels. With DV = 1 it is Mamba-1; a larger DV shares Δ and A between DV channels. Inputs: q = C and
    k = B ``[B,T,H,D]``, H = 1 where all channels share them, v = x ``[B,T,HV,DV]``, the step's logits dt
    ``[B,T,HV]``, dt_bias ``[HV]`` and A_log ``[1,1,HV,D]``, the last three fp32; Δ = softplus(dt + dt_bias) and
    A = −exp(A_log). The skip D ⊙ x, the gate and the convolution are left to the caller.

    Knobs:
        initial: the states before the first token are an input m, fp32 ``[B,1,HV,D,DV]``; otherwise zero.
        final: the states after the last token are a second output, fp32 ``[B,1,HV,D,DV]``.
    """
    dt, bias = lang.input("dt", "B T HV float32"), lang.input("dt_bias", "HV float32")
    step = lang.map(dt, bias, fn=STEP)
    decay = lang.map(lang.input("A_log", "1 1 HV D float32"), step, fn="-exp(x0) * x1", align="heads")
    written = write(bank(initial, "HV"), keys("H"), values("HV"), beta=step, decay=decay)
    return results(queries(), written, final, scale=1.0)
