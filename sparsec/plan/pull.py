"""What flows back through one kernel of the forward plan."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.ir.node import Node


@dataclass(frozen=True, slots=True)
class Pull:
    """The gradient of one output.

    Attributes:
        owner: the attend or merge whose kernel made the output.
        grad: the gradient of its output.
        lse_grad: the gradient of its log-sum-exp; None for zero.
    """

    owner: Node
    grad: Node
    lse_grad: Node | None


def own_pull(vjp: Node) -> Pull:
    """What an adjoint pulls back through its own primal."""
    return Pull(vjp.src[0], vjp.positional[1], vjp.operands.get("lse_grad"))
