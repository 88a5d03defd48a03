"""LoLA: a window, a cache of the pairs that a linear state would recall worst, and that state for all others."""

from __future__ import annotations

from typing import Literal

from sparsec.frontends.recurrent import keys, queries, values
from sparsec.ir import build as lang
from sparsec.ir.build_state import evict
from sparsec.ir.error import DeclarationError
from sparsec.ir.node import Node

ELU = "where(x0 > 0.0, x0 + 1.0, exp(x0))"


def lola(*, window: int = 128, keep: int = 128, chunk: int = 64, features: Literal["given", "elu"] = "given") -> Node:
    """Softmax over a window and some cached pairs, linear attention over all others, one normaliser (arXiv 2505.23666).

    With weights exp(D^-½ q·k) of a pair that is held and φ(q)·φ(k) of one that the state has, o = Σ w v / Σ w. When a
    chunk is complete and behind the window, its pairs join the cache, which keeps those with the largest error
    |Mᵀφ(k) / zᵀφ(k) − v|² and gives the others to the state (M, z). Choices have no gradient.

    Inputs: fq ``[B,T,H,F]`` and fk ``[B,T,HKV,F]``, not negative, are the features φ of queries and keys.

    Knobs:
        window: tokens before a query's own chunk that it sees, a multiple of ``chunk``.
        keep: pairs per key/value head that the cache holds (the paper's λ).
        chunk: tokens after which the cache takes in a chunk and gives up pairs.
        features: inputs fq and fk (given, as LoLCATs learns them), or elu + 1 of queries and keys.
    """
    q, k, v = queries(), keys(), values()
    fq, fk = _features(q, k, features)
    left = evict(fk, v, keep=keep, size=chunk)
    if window % chunk:
        raise DeclarationError("lola", f"window = {window}", f"whole chunks of {chunk} leave it", "a multiple of chunk")
    seen = f"i // {chunk} - {window // chunk}"
    near, far = lang.tokens(k, v), lang.tokens(fk, v)
    mine = "left[b, j, h * HKV // H]"
    exact = lang.attend(q, near, lang.mask(near, where=f"(j <= i) & ({mine} >= {seen})", left=left))
    known = lang.mask(far, where=f"{mine} < {seen}", left=left)
    state = lang.attend(fq, far, known, scale=1.0, bias="log(maximum(score, 1e-30))")
    return lang.merge(exact, state, fn="lse")


def _features(q: Node, k: Node, features: str) -> tuple[Node, Node]:
    if features == "elu":
        return lang.map(q, fn=ELU), lang.map(k, fn=ELU)
    return lang.input("fq", "B T H F"), lang.input("fk", "B T HKV F")
