"""Full softmax attention."""

from __future__ import annotations

from typing import Literal

from sparsec.frontends.activations import keys_values, queries
from sparsec.ir import build as lang
from sparsec.ir.node import Node


def full(*, causal: bool = True, softcap: float = 0.0, sink: Literal["none", "zero", "given"] = "none") -> Node:
    """Softmax attention over every token, or every earlier one.

    Knobs:
        causal: whether a query sees only tokens up to its own.
        softcap: c in c * tanh(score / c); 0 for none.
        sink: a logit that only joins the denominator: none, zero (softmax off by one) or given per head.
    """
    memory = keys_values()
    visible = [lang.mask(memory, where="causal")] if causal else []
    logit = lang.input("sink", "H", "float32") if sink == "given" else sink
    return lang.attend(queries(), memory, *visible, sink=logit, softcap=softcap or None)
