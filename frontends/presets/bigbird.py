"""BigBird: window, global and random blocks."""

from __future__ import annotations

from sparsec.frontends import patterns
from sparsec.frontends.activations import keys_values, queries
from sparsec.ir import build as lang
from sparsec.ir.node import Node


def bigbird(
    *,
    block: int = 64,
    window_blocks: int = 3,
    global_blocks: int = 2,
    random_blocks: int = 3,
    seed: int = 0,
    causal: bool = True,
) -> Node:
    """Window, global and random blocks (BigBird, arXiv 2007.14062). Causal: the query's block and those before it.

    Knobs:
        block: tokens per block.
        window_blocks: neighbouring blocks a query sees, its own among them: the last ones if causal, else around it.
        global_blocks: blocks at the start that all see; unless causal, they see all too.
        random_blocks: blocks drawn per query block and head from a documented counter-based generator.
        seed: of the draws.
        causal: whether a query sees only tokens up to its own.
    """
    memory = keys_values()
    apart = patterns.QUERY // block - patterns.KEY // block
    near = apart < window_blocks if causal else abs(apart) <= window_blocks // 2
    seen = near | (global_blocks * block > patterns.KEY)
    if causal:
        where = patterns.CAUSAL & seen | patterns.random_earlier(block, random_blocks, seed)
    else:
        anywhere = patterns.random_anywhere(block, random_blocks, seed)
        where = seen | (global_blocks * block > patterns.QUERY) | anywhere
    return lang.attend(queries(), memory, lang.mask(memory, where=where))
