"""The spec of what goes back from chosen scores through pools and a softmax to what scored."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.plan.specs import Selector


@dataclass(frozen=True, slots=True)
class PooledGrad:
    """From the gradients of chosen scores back through pools, the group and a softmax to what scored.

    With dS the gradients of the chosen blocks' scores, dP_n is the sum of dS over the blocks that summary n counts in,
    as often as it does. With a softmax, p being a head's probabilities, the gradient of its score is p * (dP_n - sum of
    p dP); without one it is dP_n. A ``mean`` over the group hands each head its share. Scores are worked out again tile
    by tile: nothing of size T x T/C is written.

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
