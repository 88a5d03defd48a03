"""What the designs with matrix states share: their inputs, over one length T, and how a bank is written."""

from __future__ import annotations

from sparsec.ir import build as lang
from sparsec.ir.build_state import recall, state, write
from sparsec.ir.node import Node


LOG_SIGMOID = "minimum(x0, 0.0) - log(1.0 + exp(-abs(x0)))"


def queries(ending: str = "") -> Node:
    """q ``[B,T,H,D]``."""
    return lang.input(f"q{ending}", "B T H D")


def keys() -> Node:
    """k ``[B,T,HKV,D]``."""
    return lang.input("k", "B T HKV D")


def values() -> Node:
    """v ``[B,T,HKV,DV]``."""
    return lang.input("v", "B T HKV DV")


def log_decays(dim: str = "") -> Node:
    """g <= 0 fp32 ``[B,T,HKV]``, or one per channel ``[B,T,HKV,dim]``."""
    return lang.input("g", f"B T HKV {dim} float32")


def rates(raw: bool = True) -> Node:
    """beta ``[B,T,HKV]`` as it is given, or the sigmoid of logits b."""
    return lang.input("beta", "B T HKV") if raw else rate("b")


def bank(initial: bool) -> Node:
    """One state per head: an input m fp32 ``[B,1,HKV,D,DV]``, or zero."""
    return state(lang.input("m", "B 1 HKV D DV float32") if initial else None)


def results(q: Node, written: Node, final: bool, scale: str | float = "rsqrt(D)") -> Node | tuple[Node, ...]:
    """scale · Mᵀq after every token's write, and the states after the last token where they are asked for."""
    out = recall(q, written, scale=scale)
    return (out, written) if final else out


def unit(x: Node) -> Node:
    """Vectors of unit length along the last dim."""
    return lang.map(x, row="l2norm")


def rate(name: str) -> Node:
    """sigmoid of an input ``[B,T,HKV]``."""
    return lang.map(lang.input(name, "B T HKV"), fn="sigmoid(x0)")


def written(
    bank: Node,
    k: Node,
    v: Node,
    ending: str,
    *,
    rule: str,
    route: Node | None = None,
    weight: Node | None = None,
    gate: str = "B T HKV",
    rated: bool = True,
) -> Node:
    """A bank after every token: log-decays g ``[B,T,HKV]`` or ``gate``, and, if rated, beta = sigmoid(b)."""
    decay = lang.input(f"g{ending}", gate)
    beta = rate(f"b{ending}") if rated else None
    return write(bank, k, v, rule=rule, beta=beta, decay=decay, route=route, weight=weight)


def routed(ending: str, parts: int, k: int, within: Node | None = None, fanout: int | None = None) -> tuple[Node, Node]:
    """Scores of the parts of a bank by a router common to all heads, and the k best, ties to the lower index.

    Inputs: the router's x ``[B,T,1,DX]`` and its rows w ``[parts,1,DX]``.
    """
    rows = lang.input(f"w{ending}", f"{parts} 1 DX")
    scores = lang.score(lang.input("x", "B T 1 DX"), rows, fn="router", scale=1.0)
    chosen = lang.topk(
        scores,
        k=k,
        unit="part",
        scope="token",
        selector_gradient="through_weights",
        within=within,
        fanout=fanout,
    )
    return scores, chosen
