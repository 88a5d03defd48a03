"""The spec of what tensors get back that biases of attention over chosen chunks read."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.plan.specs import GatheredAttention


@dataclass(frozen=True, slots=True)
class GatheredGradCapture:
    """The gradient of one captured tensor that the bias reads: fp32, shaped like it.

    The sum over pairs of chosen chunks of ds * d bias / d element, each added at the element's index. Additions are
    atomic where programs run at the same time, so their order is not fixed.

    Attributes:
        shape: the tensor's dims, as numbers or names of launch parameters.
        delta: None where every chunk has a softmax of its own.
    """

    name: str
    forward: GatheredAttention
    capture: str
    shape: tuple[int | str, ...]
    grad: str
    delta: str | None
    grad_capture: str
    grad_dtype: str
