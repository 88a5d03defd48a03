"""Gates that flash-linear-attention computes inside its kernels, in fp32."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus

from sparsec.compat.fla.options import need


def rate(beta: Tensor, sigmoid: bool, negative: bool) -> Tensor:
    """beta as it is, or the sigmoid of logits, doubled where eigenvalues may be negative."""
    if not sigmoid:
        return beta
    return beta.float().sigmoid() * (2 if negative else 1)


def head_gate(g: Tensor, A_log: Tensor, dt_bias: Tensor | None) -> Tensor:
    """−exp(A_log) · softplus(g + dt_bias): g ``[B,T,H]``, A_log and dt_bias ``[H]``."""
    shifted = g.float() if dt_bias is None else g.float() + dt_bias.float()
    return -A_log.float().exp() * softplus(shifted)


def channel_gate(op: str, g: Tensor, A_log: Tensor | None, dt_bias: Tensor | None, lower_bound: float | None) -> Tensor:
    """The same per key channel, g ``[B,T,H,K]`` and dt_bias ``[H·K]``, or lower_bound · σ(exp(A_log) (g + dt_bias))."""
    shifted = g.float() if dt_bias is None else g.float() + dt_bias.float().view(g.shape[-2:])
    if lower_bound is None:
        need(op, A_log=A_log)
    steep = 1.0 if A_log is None else A_log.float().view(-1, 1).exp()
    return -steep * softplus(shifted) if lower_bound is None else lower_bound * (steep * shifted).sigmoid()
