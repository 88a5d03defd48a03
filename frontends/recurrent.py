"""What the designs with matrix states share: their inputs, over one length T, and how a bank is written."""

from __future__ import annotations

from typing import Literal

from sparsec.ir import build as lang
from sparsec.ir.build_state import recall, state, write
from sparsec.ir.node import Node


def queries(ending: str = "") -> Node:
    """q ``[B,T,H,D]``."""
    return lang.input(f"q{ending}", "B T H D")


Shared = Literal["states", "keys"]
"""What heads share: several queries one state, or several states one key and query."""


def counted(shared: Shared) -> tuple[str, str]:
    """The dims that count keys and states."""
    return ("H", "HV") if shared == "keys" else ("HKV", "HKV")


def keys(heads: str = "HKV") -> Node:
    """k ``[B,T,heads,D]``."""
    return lang.input("k", f"B T {heads} D")


def values(heads: str = "HKV") -> Node:
    """v ``[B,T,heads,DV]``."""
    return lang.input("v", f"B T {heads} DV")


def several(steps: int, heads: str = "HKV") -> str:
    """Heads of what each of a token's steps brings, those of the first step first."""
    return heads if steps == 1 else f"{steps}*{heads}"


def log_decays(dim: str = "", heads: str = "HKV") -> Node:
    """g <= 0 fp32 ``[B,T,heads]``, or one per channel ``[B,T,heads,dim]``."""
    return lang.input("g", f"B T {heads} {dim} float32")


def rates(raw: bool = True, heads: str = "HKV") -> Node:
    """beta ``[B,T,heads]`` as it is given, or the sigmoid of logits b."""
    return lang.input("beta", f"B T {heads}") if raw else rate("b", heads)


def bank(initial: bool, heads: str = "HKV") -> Node:
    """One state per head: an input m fp32 ``[B,1,heads,D,DV]``, or zero."""
    return state(lang.input("m", f"B 1 {heads} D DV float32") if initial else None, heads=heads)


def results(q: Node, written: Node, final: bool, scale: str | float = "rsqrt(D)") -> Node | tuple[Node, ...]:
    """scale · Mᵀq after every token's write, and the states after the last token where they are asked for."""
    out = recall(q, written, scale=scale)
    return (out, written) if final else out


def unit(x: Node) -> Node:
    """Vectors of unit length along the last dim."""
    return lang.map(x, row="l2norm")


def rate(name: str, heads: str = "HKV") -> Node:
    """sigmoid of an input ``[B,T,heads]``."""
    return lang.map(lang.input(name, f"B T {heads}"), fn="sigmoid(x0)")


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
    raw: bool = False,
) -> Node:
    """A bank after every token: log-decays g fp32 ``[B,T,HKV]`` or ``gate``, and, if rated, beta = sigmoid(b)."""
    decay = lang.input(f"g{ending}", f"{gate} float32")
    beta = (lang.input(f"beta{ending}", "B T HKV") if raw else rate(f"b{ending}")) if rated else None
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
