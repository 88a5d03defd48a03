"""Constructors of matrix states and what is done with them. All raise ``DeclarationError``; shapes are inferred.

States are ``[B,N,HKV,D,DV]`` in fp32, key-first (o = Mᵀq); a written state stands for the states after every token.
Shapes: k ``[B,T,HKV,D]``, v ``[B,T,HKV,DV]``, beta ``[B,T,HKV]``, log-decays ``[B,T,HKV]`` (scalar) or ``[B,T,HKV,D]``
(key).
"""

from __future__ import annotations

from sparsec.ir.build import Expression
from sparsec.ir.make import make
from sparsec.ir.node import Node
from sparsec.ir.op import Op


def state(
    initial: Node | None = None,
    *,
    heads: Expression = "HKV",
    rows: Expression = "D",
    cols: Expression = "DV",
    parts: int = 1,
    schedule: str = "single",
) -> Node:
    """A bank of ``parts`` matrices per head: zero, or ``initial`` ``[N,HKV,D,DV]`` or ``[B,N,HKV,D,DV]``."""
    src = () if initial is None else (initial,)
    return make(Op.STATE, src, heads=heads, rows=rows, cols=cols, parts=parts, schedule=schedule)


def write(
    state: Node,
    k: Node,
    v: Node,
    *,
    rule: str = "additive",
    beta: Node | None = None,
    decay: Node | None = None,
    decay_kind: str | None = None,
    reads: str = "decayed",
    route: Node | None = None,
    weight: Node | None = None,
    erase_a: Node | None = None,
    erase_b: Node | None = None,
    freeze_unselected: bool = True,
    row_topk: int | None = None,
    steps: int = 1,
) -> Node:
    """M = decay·M + e·beta·k (v − pred)ᵀ (delta; pred ``reads`` the decayed or undecayed M) or + e·beta·k vᵀ.

    ``route`` lists the active parts, ``weight`` is their e; others rest if ``freeze_unselected``. erase_a and erase_b
    replace −k and beta·k of the delta rule (RWKV-7, GDN-2). ``decay_kind`` follows from the decay's shape. A token of n
    ``steps`` decays once, then writes n times: k, v, beta, erase_a and erase_b have n heads for each of the states',
    those of the first step first ``[B,T,n·HKV,…]``.
    """
    named = {"beta": beta, "decay": decay, "route": route, "weight": weight, "erase_a": erase_a, "erase_b": erase_b}
    kinds = {3: "scalar", 4: "key", 5: "full"}
    kind = decay_kind or ("none" if decay is None else kinds.get(len(decay.shape), "scalar"))
    how = {"rule": rule, "decay_kind": kind, "reads": reads}
    return make(
        Op.WRITE, (state, k, v), named, **how, freeze_unselected=freeze_unselected, row_topk=row_topk, steps=steps
    )


def residual(
    v: Node,
    written: Node,
    k: Node,
    *,
    mode: str = "post",
    clip: float | None = None,
    gamma: Node | None = None,
    renormalise: bool = True,
) -> Node:
    """gamma · clip(v − Σ e·recall), left to the next level; the recall is after (post) or before (pre) the write."""
    return make(Op.RESIDUAL, (v, written, k), {"gamma": gamma}, mode=mode, clip=clip, renormalise=renormalise)


def transfer(
    source: Node,
    target: Node,
    *,
    trigger: str,
    by: str = "all",
    size: int | None = None,
    keep: int | None = None,
    score: Node | None = None,
) -> Node:
    """The target after it received what the source lets go: leaves_window, chunk_full, carry; all, or by score."""
    return make(Op.TRANSFER, (source, target), {"score": score}, trigger=trigger, by=by, size=size, keep=keep)


def evict(k: Node, v: Node, *, keep: int, size: int) -> Node:
    """After which chunk of ``size`` tokens a pair is given up for a linear state, int32 ``[B,T,HKV]``; 2**30 for never.

    When a chunk is complete, its pairs join the ``keep`` that are held. Those stay that the state recalls worst, by
    |Mᵀk / zᵀk − v|², ties to the lower token; the others are written, M + k vᵀ and z + k (LoLA, arXiv 2505.23666).
    k are keys as the state takes them, features that are not negative. No gradient passes.
    """
    return make(Op.EVICT, (k, v), keep=keep, size=size)


def surprise(written: Node) -> Node:
    """v − Mᵀk of the decayed states that a delta rule is about to write ``[B,T,HKV,DV]`` fp32."""
    return make(Op.SURPRISE, (written,))


def norm2(x: Node) -> Node:
    """Σ x² over the last dim: ``[B,T,H,D]`` -> ``[B,T,H]`` fp32."""
    return make(Op.NORM2, (x,))


def row_lse(x: Node) -> Node:
    """log Σ exp x over the last dim: ``[B,T,H,D]`` -> ``[B,T,H]`` fp32."""
    return make(Op.ROW_LSE, (x,))


def mass(
    k: Node,
    *,
    beta: Node | None = None,
    decay: Node | None = None,
    route: Node | None = None,
    weight: Node | None = None,
    freeze_unselected: bool = True,
    slot: int | None = None,
) -> Node:
    """z = exp(decay) z + e·beta·k of the part that each token writes ``[B,T,HKV,D]`` fp32; a decay per token and head.

    A token of several parts has the mass of that in a ``slot`` of its list.
    """
    named = {"beta": beta, "decay": decay, "route": route, "weight": weight}
    return make(Op.MASS, (k,), named, freeze_unselected=freeze_unselected, slot=slot)


TIE = 2.0**-10
"""Scores of states no farther apart are a tie: masses of one key alone point alike, and differ by rounding only."""


def mixture(
    q: Node,
    *z: Node,
    scale: Expression = 1.0,
    top: int | None = None,
    first: int = 1,
    bias: Node | None = None,
    gain: Node | None = None,
) -> Node:
    """gain · softmax over C candidates of scale · q · z/|z| + bias: ``[B,T,H,C]`` fp32, as bias and gain.

    ``top`` keeps the best few, the ``first`` ones before all others; ties, scores no more than ``TIE`` apart, go to the
    earlier: a candidate comes before an earlier one only if it scores more than that above it.
    """
    return make(Op.MIXTURE, (q, *z), {"bias": bias, "gain": gain}, scale=scale, top=top, first=first)


def recall(
    q: Node,
    *states: Node,
    mode: str = "sum",
    when: str = "after",
    read: str = "active",
    renormalise: bool = True,
    top: int | None = None,
    slot: int | None = None,
    turned: bool = False,
    scale: Expression = 1.0,
    kappa: Node | None = None,
    level_bias: Node | None = None,
    level_gate: Node | None = None,
) -> Node:
    """q ``[B,TQ,H,D]`` against written states -> ``[B,TQ,H,DV]``: a sum, or a softmax over states or slots.

    ``when``: after or before the token's own write. ``read``: the parts that the write activated, or all; their e is
    renormalised if ``renormalise``. ``top`` keeps the best few candidates of a softmax, the first level among them.
    With a ``slot`` that part of a token's list alone answers, without its e. ``turned`` states tell q ``[B,TQ,H,DV]``
    Mq ``[B,TQ,H,D]``.
    """
    named = {"kappa": kappa, "level_bias": level_bias, "level_gate": level_gate}
    how = {"mode": mode, "when": when, "read": read, "renormalise": renormalise}
    return make(Op.RECALL, (q, *states), named, **how, top=top, slot=slot, turned=turned, scale=scale)


def aux(
    scores: Node, selection: Node | None = None, *, fn: str, coefficient: float = 1.0, target: Node | None = None
) -> Node:
    """A scalar training signal: load balance of a selection, or KL, InfoNCE, MSE of scores against a target."""
    src = (scores,) if selection is None else (scores, selection)
    return make(Op.AUX, src, {"target": target}, fn=fn, coefficient=coefficient)
