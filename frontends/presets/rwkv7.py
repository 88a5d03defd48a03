"""RWKV-7: a decay per key channel and an erase vector of its own, which reads the undecayed state."""

from __future__ import annotations

from sparsec.frontends.recurrent import bank, keys, log_decays, queries, results, unit, values
from sparsec.ir import build as lang
from sparsec.ir.build_state import write
from sparsec.ir.node import Node


def rwkv7(*, raw: bool = False, initial: bool = False, final: bool = False) -> Node | tuple[Node, ...]:
    """M = diag(exp(g)) M + b (Mᵀa)ᵀ + k vᵀ, o = Mᵀq, the erase term reading the undecayed M (RWKV-7, arXiv 2503.14456).

    Inputs: logits w of the decay and r of the rate ``[B,T,HKV,D]``, k_k and k_a ``[HKV,D]``: g = −e^-½ σ(w),
    κ = k ⊙ k_k of unit length, a = −κ, b = κ ⊙ σ(r), and k is scaled by 1 + (σ(r) − 1) k_a.

    Knobs:
        raw: k, log-decays g ``[B,T,HKV,D]`` fp32 and the vectors a and b ``[B,T,HKV,D]`` as they are given.
        initial: the states before the first token are an input m, fp32 ``[B,1,HKV,D,DV]``; otherwise zero.
        final: the states after the last token are a second output, fp32 ``[B,1,HKV,D,DV]``.
    """
    if raw:
        a, b = (lang.input(name, "B T HKV D") for name in ("a", "b"))
        k, decay = keys(), log_decays("D")
    else:
        k, a, b = _erasing(keys(), lang.input("r", "B T HKV D"))
        decay = lang.map(lang.input("w", "B T HKV D"), fn="-0.6065306597126334 * sigmoid(x0)")
    written = write(bank(initial), k, values(), rule="delta", decay=decay, reads="undecayed", erase_a=a, erase_b=b)
    return results(queries(), written, final, scale=1.0)


def _erasing(k: Node, rate: Node) -> tuple[Node, Node, Node]:
    """What is written, and what is erased: the keys, a and b."""
    by_channel = (lang.input(name, "HKV D") for name in ("k_k", "k_a"))
    removed = unit(lang.map(k, next(by_channel), fn="x0 * x1"))
    written = lang.map(k, rate, next(by_channel), fn="x0 * (1.0 + (sigmoid(x1) - 1.0) * x2)")
    return written, lang.map(removed, fn="-x0"), lang.map(removed, rate, fn="x0 * sigmoid(x1)")
