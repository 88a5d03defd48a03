"""Sparse state expansion: a shared matrix state beside partitions, of which a router activates a few per token."""

from __future__ import annotations

from typing import Literal

from sparsec.frontends.recurrent import queries, routed, unit, written
from sparsec.ir import build as lang
from sparsec.ir.build_state import aux, recall, state
from sparsec.ir.node import Node


def sse(
    *, parts: int = 4, k: int = 1, rule: Literal["gla", "gdn"] = "gla", balance: float = 0.0
) -> Node | tuple[Node, Node]:
    """o = τ (q1ᵀM_0 + Σ_{n in A} e_n q2ᵀM_n); parts outside A keep still (SSE, arXiv 2507.16577), τ = D^-½.

    e is a softmax over all parts, cut and not renormalised; it multiplies writes and reads. Ending 1 marks the inputs
    of the shared state, 2 those of the partitions: q, k, log-decays g, and for gdn the rates' logits b. v is common.

    Knobs:
        parts: partitions to choose from.
        k: partitions that a token writes and reads.
        rule: gla (keys are a softmax, a decay per key channel) or gdn (unit keys, a scalar decay, delta rule).
        balance: coefficient of the balance loss, a second output; 0 for none.
    """
    v, delta = lang.input("v", "B T HKV DV"), rule == "gdn"
    gate = "B T HKV" if delta else "B T HKV D"
    logits, route = routed("", parts, k)
    e = lang.weights(logits, route, fn="softmax", renormalise=False)
    (q1, k1), (q2, k2) = _roles("1", delta), _roles("2", delta)
    writes = "delta" if delta else "additive"
    shared = written(state(), k1, v, "1", rule=writes, gate=gate, rated=delta)
    bank = written(state(parts=parts), k2, v, "2", rule=writes, gate=gate, rated=delta, route=route, weight=e)
    reads = [recall(q, memory, renormalise=False, scale="rsqrt(D)") for q, memory in ((q1, shared), (q2, bank))]
    o = lang.merge(*reads, fn="sum")
    return (o, aux(logits, route, fn="balance", coefficient=balance)) if balance else o


def _roles(ending: str, delta: bool) -> tuple[Node, Node]:
    """Queries and keys: unit vectors, or silu(q) and a softmax over the rows of the state."""
    q, k = queries(ending), lang.input(f"k{ending}", "B T HKV D")
    return (unit(q), unit(k)) if delta else (lang.map(q, fn="x0 * sigmoid(x0)"), lang.map(k, row="softmax"))
