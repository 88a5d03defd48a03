"""Ops with erase vectors: RWKV-7, DPLR, IPLR, GDN-2; and products of delta rules. States are fp32 ``[N,H,K,V]``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsec.compat.fla.gates import channel_gate
from sparsec.compat.fla.options import checked, placed, refuse, renamed
from sparsec.compat.fla.recurrence import Form
from sparsec.compat.fla.run import Result, recur, scaled


@checked
def chunk_dplr_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, gk: Tensor, scale: float | None = None,
    initial_state: Tensor | None = None, output_final_state: bool = False, cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None, *, reverse: bool = False, lower_bound: float | None = None, **options: Any,
) -> Result:  # fmt: skip
    """M = diag(exp(gk)) M + b (Mᵀa)ᵀ + k vᵀ, the erase term reading the undecayed M; a, b, gk ``[B,T,H,K]``."""
    refuse("chunk_dplr_delta_rule", **options)
    form = Form(scaled(scale, k), rule="delta", decay="key", erase="undecayed")
    return recur(
        "chunk_dplr_delta_rule", form, q=q, k=k, v=v, a=a, b=b, g=gk, initial_state=initial_state, reverse=reverse,
        output_final_state=output_final_state, cu_seqlens=cu_seqlens,
    )  # fmt: skip


fused_recurrent_dplr_delta_rule = placed(9, "reverse", "cu_seqlens")(chunk_dplr_delta_rule)


@checked
def chunk_rwkv7(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, scale: float | None = 1.0,
    initial_state: Tensor | None = None, output_final_state: bool = False, cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None, **options: Any,
) -> Result:  # fmt: skip
    """``chunk_dplr_delta_rule`` with RWKV-7's names: r reads, w are the log-decays, and the scale is 1."""
    return chunk_dplr_delta_rule(r, k, v, a, b, w, scale, initial_state, output_final_state, cu_seqlens, **options)


@checked
def fused_recurrent_rwkv7(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, scale: float | None = None,
    initial_state: Tensor | None = None, output_final_state: bool = True, cu_seqlens: Tensor | None = None,
    **options: Any,
) -> Result:  # fmt: skip
    """As ``chunk_rwkv7``, but the scale is K^-½ and the last states are returned unless said otherwise."""
    return chunk_rwkv7(r, w, k, v, a, b, scale, initial_state, output_final_state, cu_seqlens, **options)


@checked
def chunk_iplr_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, scale: float | None = None,
    initial_state: Tensor | None = None, output_final_state: bool = False, cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None, **options: Any,
) -> Result:  # fmt: skip
    """M = M + b (Mᵀa)ᵀ + k vᵀ; a, b ``[B,T,H,K]``."""
    refuse("chunk_iplr_delta_rule", **options)
    form = Form(scaled(scale, k), rule="delta", erase="undecayed")
    return recur(
        "chunk_iplr_delta_rule", form, q=q, k=k, v=v, a=a, b=b, initial_state=initial_state,
        output_final_state=output_final_state, cu_seqlens=cu_seqlens,
    )  # fmt: skip


fused_recurrent_iplr_delta_rule = chunk_iplr_delta_rule


@renamed
@checked
def chunk_gdn2(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, w: Tensor, scale: float | None = None,
    initial_state: Tensor | None = None, output_final_state: bool = False, use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False, cu_seqlens: Tensor | None = None, *, lower_bound: float | None = None,
    state_v_first: bool = False, A_log: Tensor | None = None, dt_bias: Tensor | None = None, **options: Any,
) -> Result:  # fmt: skip
    """M = F − k (Fᵀ(b ⊙ k))ᵀ + k (w ⊙ v)ᵀ with F = diag(exp(g)) M; g and b ``[B,T,HV,K]``, w ``[B,T,HV,V]``."""
    refuse("chunk_gdn2", **options)
    if use_gate_in_kernel:
        g = channel_gate("chunk_gdn2", g, A_log, dt_bias, lower_bound)
    if use_qk_l2norm_in_kernel:
        q, k = _unit(q), _unit(k)
    times = v.shape[2] // max(k.shape[2], 1)
    q, k = (x.repeat_interleave(times, 2) if times > 1 else x for x in (q, k))
    form = Form(scaled(scale, k), rule="delta", decay="key", erase="decayed")
    return recur(
        "chunk_gdn2", form, q=q, k=k, v=w * v, a=-b * k, b=k, g=g, initial_state=initial_state,
        output_final_state=output_final_state, state_v_first=state_v_first, cu_seqlens=cu_seqlens,
    )  # fmt: skip


@placed(11, "use_qk_l2norm_in_kernel", "use_gate_in_kernel", "lower_bound", "state_v_first", "cu_seqlens")
@renamed
@checked
def fused_recurrent_gdn2(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, w: Tensor, A_log: Tensor | None = None,
    dt_bias: Tensor | None = None, scale: float | None = None, initial_state: Tensor | None = None,
    output_final_state: bool = False, **options: Any,
) -> Result:  # fmt: skip
    """As ``chunk_gdn2``."""
    return chunk_gdn2(q, k, v, g, b, w, scale, initial_state, output_final_state, A_log=A_log, dt_bias=dt_bias,
                      **options)  # fmt: skip


@checked
def chunk_gated_delta_product(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, num_householder: int, scale: float | None = None,
    initial_state: Tensor | None = None, output_final_state: bool = False, use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None, **options: Any,
) -> Result:  # fmt: skip
    """Several delta rules per token: k, v and beta have ``num_householder`` rows for each of q and g, decay first."""
    refuse("chunk_gated_delta_product", **options)
    times = v.shape[2] // max(k.shape[2], 1)
    q, k = (x.repeat_interleave(times, 2) if times > 1 else x for x in (q, k))
    k, v, beta = (_beside(x, num_householder) for x in (k, v, beta))
    g = q.new_zeros(*q.shape[:2], v.shape[2], dtype=torch.float32) if g is None else g
    unit = use_qk_l2norm_in_kernel
    form = Form(scaled(scale, k), rule="delta", decay="head", rated=True, unit=unit, steps=num_householder)
    return recur(
        "chunk_gated_delta_product", form, q=q, k=k, v=v, beta=beta, g=g, initial_state=initial_state,
        output_final_state=output_final_state, cu_seqlens=cu_seqlens,
    )  # fmt: skip


def _beside(x: Tensor, steps: int) -> Tensor:
    """``[B,n·T,H,…]``, a row per step, as ``[B,T,n·H,…]``."""
    return x.reshape(x.shape[0], x.shape[1] // steps, steps * x.shape[2], *x.shape[3:])


def _unit(x: Tensor) -> Tensor:
    """Rows of unit length, as kernels make them."""
    return (x.float() * torch.rsqrt(x.float().square().sum(-1, keepdim=True) + 1e-6)).to(x.dtype)
