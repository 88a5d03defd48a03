"""From the gradient of chosen units' weights to that of their scores, along lists that are read from the end.

The forward rules are those of ``sparsec.lower.select.chosen.weights``.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.scalars import mul, sub
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node

NEEDS_SCORES = frozenset({"stick"})
NEEDS_TOTAL = frozenset({"softmax", "softmax_sink"})


@dataclass(frozen=True, slots=True)
class Part:
    """Some slots of each list, later ones first; ``weights`` and ``grads`` are 0 where a slot holds nothing."""

    slots: Axis
    valid: Node
    weights: Node
    grads: Node

    @property
    def product(self) -> Node:
        """w * dw."""
        return mul(self.weights, self.grads)


def score_grads(fn: str, part: Part, scores: Node | None, outside: Node) -> Node:
    """The gradients of the scores; 0 where a slot holds nothing.

    ``outside`` is the sum of w * dw over the whole list (``NEEDS_TOTAL``) or over the slots after this part.
    """
    if fn in NEEDS_TOTAL:
        return mul(part.weights, sub(part.grads, outside))
    if fn == "sigmoid":
        return mul(part.product, sub(tile.const(1.0), part.weights))
    if fn == "raw":
        return part.grads
    assert fn == "stick" and scores is not None, fn
    later = tile.apply(Fn.ADD, sub(tile.scan(part.product, part.slots), part.product), outside)
    own = mul(part.product, tile.apply(Fn.SIGMOID, mul(scores, -1.0)))
    found = sub(own, mul(tile.apply(Fn.SIGMOID, scores), later))
    return tile.apply(Fn.WHERE, part.valid, found, 0.0)
