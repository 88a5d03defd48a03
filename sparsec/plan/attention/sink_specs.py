"""The spec of what sinks inside chosen chunks get back."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.plan.specs import GatheredAttention


@dataclass(frozen=True, slots=True)
class ChunkSinkGrad:
    """sink_grad ``[H]`` fp32 of attention with a softmax, and the sink, inside each chosen chunk.

    With u the sink's share of a chunk's softmax, c the sum of p * dp over the chunk and w its weight: minus the sum of
    w * u * c over batch, rows and chosen chunks, always in the same order.
    """

    name: str
    forward: GatheredAttention
    grad: str
    sink_grad: str
    grad_dtype: str
