"""Memories of slots and of single channels: gated slot attention and HGRN. States are fp32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsec.compat.fla.options import checked, forbid, placed, refuse
from sparsec.compat.fla.recurrence import Form
from sparsec.compat.fla.run import Result, recur, scaled

Pair = tuple[Tensor | None, Tensor | None]


@checked
def chunk_gsa(
    q: Tensor, k: Tensor, v: Tensor, s: Tensor, g: Tensor | None = None, scale: float | None = None,
    initial_state: tuple[Tensor, Tensor] | None = None, output_final_state: bool = False, checkpoint_level: int = 2,
    cu_seqlens: Tensor | None = None, cu_seqlens_cpu: Tensor | None = None, *, reverse: bool = False, **options: Any,
) -> tuple[Tensor, Pair]:  # fmt: skip
    """o = Vᵀ softmax(scale · Kq) over M slots, s and log-decays g ``[B,T,H,M]``; q may have several times H heads.

    Without g, s are logits of shares that are normalised over the tokens so far (ABC). States are the pair
    ``[N,H,K,M]`` and ``[N,H,M,V]``.
    """
    refuse("chunk_gsa", **options)
    if g is None:
        forbid("chunk_gsa", "without g, shares are normalised over one document", cu_seqlens=cu_seqlens)
        s, g = cumulative(s)
    keys, values = (None, None) if initial_state is None else initial_state
    how: dict[str, Any] = {"output_final_state": output_final_state, "cu_seqlens": cu_seqlens, "reverse": reverse}
    scores, held = recur(
        "chunk_gsa", Form(scaled(scale, k), decay="value"), q=q, k=k, v=s, g=g, initial_state=keys, **how
    )
    shares = scores.float().softmax(-1).to(q.dtype)
    o, read = recur("chunk_gsa", Form(1.0, decay="key"), q=shares, k=s, v=v, g=g, initial_state=values, **how)
    return o, (held, read)


fused_recurrent_gsa = placed(8, "reverse", "cu_seqlens")(chunk_gsa)


def cumulative(s: Tensor) -> tuple[Tensor, Tensor]:
    """Shares exp(s_t) / Σ_(i≤t) exp(s_i), and the log-decays by which earlier ones shrink ``[B,T,H,M]``."""
    total = s.float().logcumsumexp(1)
    return (s.float() - total).exp().to(s.dtype), torch.cat([total[:, :1], total[:, :-1]], 1) - total


@checked
def chunk_hgrn(
    x: Tensor, g: Tensor, initial_state: Tensor | None = None, output_final_state: bool = False,
    cu_seqlens: Tensor | None = None, **options: Any,
) -> Result:  # fmt: skip
    """h = exp(g) ⊙ h + x, for x and log-decays g ``[B,T,D]``; states ``[N,D]``.

    One key of one channel, which is 1, and D value channels that decay by themselves.
    """
    refuse("chunk_hgrn", **options)
    ones = torch.ones_like(x[..., :1]).unsqueeze(-1)
    first = None if initial_state is None else initial_state[:, None, None]
    o, last = recur(
        "chunk_hgrn", Form(1.0, decay="value"), q=ones, k=ones, v=x.unsqueeze(2), g=g.unsqueeze(2),
        initial_state=first, output_final_state=output_final_state, cu_seqlens=cu_seqlens,
    )  # fmt: skip
    return o.squeeze(2), None if last is None else last.flatten(1)


fused_recurrent_hgrn = chunk_hgrn
