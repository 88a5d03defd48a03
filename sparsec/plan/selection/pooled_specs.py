"""The spec of what goes back from chosen scores through pools and a softmax to what scored."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.plan.specs import Selector


@dataclass(frozen=True, slots=True)
class PooledGrad:
    """From the gradients of chosen scores back through pools, the group and a softmax to what scored.

    With dS the gradients of the chosen blocks' scores, dP_n is the sum of dS over the blocks that summary n counts in,
    as often as it does. With a softmax, p being a head's probabilities, the gradient of its score is p * (dP_n - sum of
    p dP); without one it is dP_n. Where the weights are shares of a softmax over all that is eligible, "softmax_all",
    p is that of the list's scores, after the group, and dS are the gradients of the weights. A ``mean`` over the group
    hands each head its share, a maximum all to the head that has it; a block that is a maximum hands all to the first
    summary that has it. Scores are worked out again tile by tile: nothing of size T x T/C is written.

    Attributes:
        scores_grad: dS ``[B,TQ,HS,K]`` fp32, 0 where the index is -1.
        grad_q: ``[B,TQ,H,D]``; ``grad_keys``: ``[B,N,HKV,D]``; None where not asked for.
    """

    name: str
    forward: Selector
    scores_grad: str
    grad_q: str | None
    grad_keys: str | None
    q_dtype: str
    keys_dtype: str

    @property
    def normalised(self) -> bool:
        """Whether scores pass a softmax over many, per head or as weights of the list."""
        return self.forward.softmax or self.forward.weights == "softmax_all"

    @property
    def maximum(self) -> bool:
        """Whether heads that share a list compete."""
        return self.forward.group == "max" and self.forward.heads > self.forward.kv_heads

    @property
    def scored(self) -> bool:
        """Whether scores are worked out again."""
        return self.normalised or self.maximum

    @property
    def together(self) -> bool:
        """Whether that takes the scores of all heads that share a list."""
        own = self.forward
        shared = own.group is not None and own.heads > own.kv_heads
        return self.maximum or (shared and own.weights == "softmax_all")
