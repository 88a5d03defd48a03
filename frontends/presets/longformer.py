"""Longformer: a window, dilated on some heads, and global tokens."""

from __future__ import annotations

from sparsec.frontends import patterns
from sparsec.frontends.activations import keys_values, queries
from sparsec.ir import build as lang
from sparsec.ir.node import Node


def longformer(
    *, window: int = 512, global_tokens: int = 1, dilation: int = 1, dilated_heads: int = 0, causal: bool = True
) -> Node:
    """A sliding window and global tokens (Longformer, arXiv 2004.05150), without its second set of projections.

    Knobs:
        window: tokens a query sees: the last ones if causal, else half of them on either side.
        global_tokens: tokens at the start that all see; unless causal, they see all too.
        dilation: the step of the window, in tokens, on the first ``dilated_heads`` heads.
        dilated_heads: heads with a dilated window.
        causal: whether a query sees only tokens up to its own.
    """
    age, memory = patterns.AGE, keys_values()
    reach = age if causal else abs(age)
    width = window if causal else window // 2 + 1
    dilated = (dilated_heads > patterns.H) & (age % dilation == 0) & (reach < width * dilation)
    near = (reach < width) & (dilated_heads <= patterns.H) | dilated if dilated_heads else reach < width
    seen = near | (global_tokens > patterns.KEY)
    where = patterns.CAUSAL & seen if causal else seen | (global_tokens > patterns.QUERY)
    return lang.attend(queries(), memory, lang.mask(memory, where=where))
