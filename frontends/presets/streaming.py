"""StreamingLLM: a window and the first few tokens."""

from __future__ import annotations

from sparsec.frontends import patterns
from sparsec.frontends.activations import keys_values, queries
from sparsec.ir import build as lang
from sparsec.ir.node import Node


def streaming(*, window: int = 1024, sinks: int = 4) -> Node:
    """A sliding window and the first tokens as attention sinks (StreamingLLM, arXiv 2309.17453).

    Positions are the caller's: re-index them in the cache before q and k come here, as the paper does.

    Knobs:
        window: tokens a query sees, its own among them.
        sinks: tokens at the start that every query sees.
    """
    memory = keys_values()
    seen = lang.mask(memory, where=patterns.first(sinks) | patterns.window(window))
    return lang.attend(queries(), memory, seen)
