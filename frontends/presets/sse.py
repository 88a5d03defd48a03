"""Sparse state expansion: a shared matrix state beside partitions, of which a router activates a few per token."""

from __future__ import annotations

from typing import Literal

from sparsec.frontends.recurrent import queries, rate, routed, unit
from sparsec.ir import build as lang
from sparsec.ir.build_state import aux, recall, state, write
from sparsec.ir.node import Node


def sse(
    *,
    parts: int = 4,
    k: int = 1,
    rule: Literal["gla", "gdn"] = "gla",
    balance: float = 0.0,
    literal: bool = False,
    raw: bool = False,
    initial: bool = False,
    final: bool = False,
) -> Node | tuple[Node, ...]:
    """o = τ (q1ᵀM_0 + Σ_{n in A} e_n q2ᵀM_n); parts outside A keep still (SSE, arXiv 2507.16577), τ = D^-½.

    e is a softmax over all parts, cut and not renormalised; it multiplies writes and reads. Ending 1 marks the inputs
    of the shared state, 2 those of the partitions: q, k, log-decays g, and for gdn the rates' logits b. v is common.

    Knobs:
        parts: partitions to choose from.
        k: partitions that a token writes and reads.
        rule: gla (keys are a softmax, a decay per key channel) or gdn (unit keys, a scalar decay, delta rule).
        balance: coefficient of the balance loss, a second output; 0 for none.
        literal: e says only what is chosen, as in released code for gdn, where normalising what e multiplies undoes it.
        raw: queries, keys and, for gdn, beta ``[B,T,HKV]`` as they are given.
        initial: states before the first token are inputs m1 and m2, fp32 ``[B,1,HKV,D,DV]`` and ``[B,parts,HKV,D,DV]``.
        final: the states after the last token are the last two outputs, shaped alike.
    """
    v = lang.input("v", "B T HKV DV")
    logits, route = routed("", parts, k)
    chosen = {"route": route}
    if not literal:
        chosen["weight"] = lang.weights(logits, route, fn="softmax", renormalise=False)
    banks, reads = list[Node](), list[Node]()
    for ending, count, how in (("1", 1, {}), ("2", parts, chosen)):
        q, key = _role(ending, rule, raw)
        m = lang.input(f"m{ending}", f"B {count} HKV D DV float32") if initial else None
        bank = write(state(m, parts=count), key, v, rule=_RULES[rule], **_gates(ending, rule, raw), **how)  # type: ignore[arg-type]
        banks.append(bank)
        reads.append(recall(q, bank, renormalise=False, scale="rsqrt(D)"))
    o = lang.merge(*reads, fn="sum")
    losses = (aux(logits, route, fn="balance", coefficient=balance),) if balance else ()
    last = tuple(banks) if final else ()
    return (o, *losses, *last) if losses or last else o


_RULES = {"gla": "additive", "gdn": "delta"}


def _role(ending: str, rule: str, raw: bool) -> tuple[Node, Node]:
    """Queries and keys: unit vectors, or silu(q) and a softmax over the rows of the state."""
    q, k = queries(ending), lang.input(f"k{ending}", "B T HKV D")
    if raw:
        return q, k
    return (unit(q), unit(k)) if rule == "gdn" else (lang.map(q, fn="x0 * sigmoid(x0)"), lang.map(k, row="softmax"))


def _gates(ending: str, rule: str, raw: bool) -> dict[str, Node]:
    """Log-decays, and for gdn rates."""
    if rule == "gla":
        return {"decay": lang.input(f"g{ending}", "B T HKV D float32")}
    beta = lang.input(f"beta{ending}", "B T HKV") if raw else rate(f"b{ending}")
    return {"decay": lang.input(f"g{ending}", "B T HKV float32"), "beta": beta}
