"""Linear attention divided by the sum of its scores, whose running sum of keys is a state of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsec.compat.fla.recurrence import Form
from sparsec.compat.fla.run import recur
from sparsec.ir.error import InputError

States = tuple[Tensor, Tensor]
LEAST = 1e-10


def normalised(
    q: Tensor, k: Tensor, v: Tensor, scale: float, initial: States | None, final: bool, reverse: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, States | None]:  # fmt: skip
    """o / (q · z + 1e-10) and the pair of last states (M ``[N,H,K,V]``, z ``[N,1,H,K]``), if asked for.

    z is the state of linear attention whose only value is 1.
    """
    if initial is not None and not isinstance(initial, tuple | list):
        given = type(initial).__name__
        raise InputError("chunk_linear_attn: initial_state", given, "normalised, it is a pair", "(state, sum of keys)")
    m, z = initial or (None, None)
    how = {"output_final_state": final, "reverse": reverse, "cu_seqlens": cu_seqlens}
    ones = torch.ones_like(v[..., :1])
    column = None if z is None else z.squeeze(1).unsqueeze(-1)
    o, last = recur("chunk_linear_attn", Form(scale), q=q, k=k, v=v, initial_state=m, **how)  # type: ignore[arg-type]
    sums, keys = recur("chunk_linear_attn", Form(scale), q=q, k=k, v=ones, initial_state=column, **how)  # type: ignore[arg-type]
    states = None if last is None or keys is None else (last, keys.squeeze(-1).unsqueeze(1))
    return (o / (sums.float() + LEAST)).to(o.dtype), states
