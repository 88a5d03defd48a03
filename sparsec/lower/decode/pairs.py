"""Attention over summaries and a selector of the same summaries: in a step the attention leaves its logits behind.

Both multiply the same queries with the same keys under one scale and one mask; so keys are read once, and the
selector's probabilities come from the attention's logits and log-sum-exps.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.select.candidates import as_keys
from sparsec.plan.grad_specs import AnySpec
from sparsec.plan.specs import Selector, TiledAttention


def partners(split: Sequence[tuple[AnySpec, int]]) -> dict[str, AnySpec]:
    """By kernel name, the attention that leaves logits for a selector with as many splits, and that selector."""
    found: dict[str, AnySpec] = {}
    for place, (selector, splits) in enumerate(split):
        if not isinstance(selector, Selector):
            continue
        before = [s for s, n in split[:place] if isinstance(s, TiledAttention) and n == splits and s.name not in found]
        attention = next((s for s in before if same_logits(s, selector)), None)
        if attention is not None:
            found |= {attention.name: selector, selector.name: attention}
    return found


def same_logits(attention: TiledAttention, selector: Selector) -> bool:
    """Whether a selector's probabilities are those of an attention."""
    (piece, *more) = attention.pieces
    plain = attention.softcap is None and attention.sink is None and piece.bias is None and not piece.captures
    sides = [
        (x.q, k, x.heads, x.kv_heads, x.scale, x.dtype) for x, k in ((attention, piece.k), (selector, selector.keys))
    ]
    plain = plain and not selector.cosine
    stored = selector.key_dtype in (None, selector.dtype) and selector.head_weights is None
    visible = None if selector.visible is None else as_keys(selector.visible)
    return (
        selector.softmax and plain and not more and piece.batched and selector.batched and stored
        and sides[0] == sides[1] and piece.where is visible and attention.head_dim == selector.dim
    )  # fmt: skip
