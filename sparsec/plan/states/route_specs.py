"""Specs of a router: scores of a few parts by learned rows, the best of them, their shares, its loss and its adjoint.

One router serves all heads. Shares are a softmax over all parts in fp32; ties go to the lower part.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.plan.selection.parents import Parents


@dataclass(frozen=True, slots=True)
class Router:
    """The ``slots`` best of scale · W x per token.

    Attributes:
        x, rows: ``[B,N,1,dim]`` and W ``[parts,1,dim]``, each of its own dtype.
        ids: int32 ``[B,N,1,slots]``, by descending score; -1 where nothing is left.
        shares: of all parts, fp32 ``[B,N,1,parts]``.
        weights: of the chosen, fp32 ``[B,N,1,slots]``: their shares or, if ``renormalise``, divided by their sum; 0
            where there is none. None is not asked for.
        length: the launch parameter with N.
    """

    name: str
    x: str
    rows: str
    ids: str
    shares: str
    weights: str | None
    parts: int
    dim: int
    slots: int
    scale: float
    dtype: str
    rows_dtype: str
    renormalise: bool = False
    within: Parents | None = None
    length: str = "N"


@dataclass(frozen=True, slots=True)
class Balance:
    """loss = coefficient · P/K · Σ_p mean(share of p) · mean(p is chosen), a scalar; means over all tokens.

    Attributes:
        slopes: the gradient of every share of a part, fp32 ``[parts]``.
    """

    name: str
    router: Router
    coefficient: float
    loss: str
    slopes: str

    @property
    def factor(self) -> float:
        """coefficient · P/K."""
        return self.coefficient * self.router.parts / self.router.slots


@dataclass(frozen=True, slots=True)
class RouterGrad:
    """Gradients of what scored, from those of the weights and of the loss, of which None is zero.

    Attributes:
        grad_weights: fp32 ``[B,N,1,slots]``.
        loss: the loss whose gradient ``grad_loss`` is, a scalar.
        grad_x, grad_rows: None is not asked for.
    """

    name: str
    router: Router
    grad_weights: str | None
    loss: Balance | None
    grad_loss: str | None
    grad_x: str | None
    grad_rows: str | None
    x_dtype: str
    rows_dtype: str
