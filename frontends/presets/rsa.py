"""Recursive sparse attention, in sparsec's own formalisation: levels of states, each storing what the last one left."""

from __future__ import annotations

from typing import Literal

from sparsec.frontends.recurrent import queries, rate, routed, unit, written
from sparsec.ir import build as lang
from sparsec.ir.build_state import recall, residual, state
from sparsec.ir.node import Node


def rsa(
    *,
    levels: int = 3,
    parts: int = 4,
    branching: int = 4,
    k: int = 1,
    routing: Literal["flat", "tree"] = "flat",
    left: Literal["post", "pre", "none"] = "post",
    rule: Literal["delta", "additive"] = "delta",
    clip: float = 1.0,
    readout: Literal["state_softmax", "sum", "slot_softmax"] = "state_softmax",
    top: int = 0,
    raw: bool = False,
) -> Node:
    """Recursive sparse attention as sparsec formalises it: residual levels of sparsely activated states.

    Only the abstract of the paper is public (OpenReview, ICML 2026 submission 16685). It states: a linear-complexity
    model; several memory states, connected and superposed, from shallow to deep; the shallow hold a coarse
    representation, the deep residual information; storage that can match standard attention's; a readout like sparse
    attention; sparse activation. It states no update rule, no number of levels, no routing and no readout: everything
    below is sparsec's own.

    Level 1 is one state, level l > 1 has parts · branching^(l-2), of which a router activates k per token; the others
    keep still. A state is written by the delta rule with e·beta; the next level stores gamma · clip(v − Σ ê Mᵀk). The
    readout is a softmax over the active states of all levels by sqrt(D) · q · z/‖z‖, z the decayed sum of a state's
    keys. Inputs: q, k, v, per level l log-decays g_l <= 0 fp32, logits b_l and c_l of beta and gamma ``[B,T,HKV]``, and
    for N_l > 1 the router's x ``[B,T,1,DX]`` and its rows w_l ``[N_l,1,DX]``. q and k are made unit vectors.

    Knobs:
        levels: from the shallow one to the deepest.
        parts: states of level 2.
        branching: how many times more states each deeper level has.
        k: states of a level that a token writes and reads.
        routing: flat over the whole level, or a tree: children of the states active one level up.
        left: to the next level, by the recall after the write (post) or the prediction before it (pre), or all (none).
        rule: delta or additive writes.
        clip: bound on every element of what is left; 0 for none.
        readout: softmax over states, sum by ê, or softmax over the slots of the active states, k then being a softmax.
        top: the best states, level 1 first, or slots that the softmax keeps; 0 for all active ones.
        raw: q and k are unit vectors as they are given, and rates beta_l ``[B,T,HKV]`` take the place of b_l.
    """
    k_in, v, slotted = lang.input("k", "B T HKV D"), lang.input("v", "B T HKV DV"), readout == "slot_softmax"
    q, key = (x if raw else unit(x) for x in (queries(), k_in))
    place = lang.map(k_in, row="softmax") if slotted else key
    banks: list[Node] = []
    above: Node | None = None
    for level in range(1, levels + 1):
        count, ending = parts * branching ** (level - 2) if level > 1 else 1, f"_{level}"
        how: dict[str, Node] = {}
        if count > 1:
            tree = {"within": above, "fanout": branching} if routing == "tree" and above is not None else {}
            scores, above = routed(ending, count, k, **tree)  # type: ignore[arg-type]
            how = {"route": above, "weight": lang.weights(scores, above, fn="softmax", renormalise=False)}
        memory = written(state(parts=count), place, v, ending, rule=rule, raw=raw, **how)  # type: ignore[arg-type]
        banks.append(memory)
        if slotted:
            banks.append(written(state(parts=count, cols="D"), place, key, ending, rule=rule, raw=raw, **how))  # type: ignore[arg-type]
        if left != "none" and level < levels:
            v = residual(v, memory, place, mode=left, clip=clip or None, gamma=rate(f"c{ending}"))
    return recall(q, *banks, mode=readout, top=top or None)
