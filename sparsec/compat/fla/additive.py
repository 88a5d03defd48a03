"""Ops whose writes add up: linear attention, retention, simple GLA, GLA. States are fp32 ``[N,H,K,V]``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsec.compat.fla.normalised import normalised
from sparsec.compat.fla.options import checked, forbid, placed, refuse, renamed
from sparsec.compat.fla.recurrence import Form
from sparsec.compat.fla.run import Result, recur, scaled


@renamed
@checked
def chunk_simple_gla(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None = None, g_gamma: Tensor | None = None,
    scale: float | None = None, initial_state: Tensor | None = None, output_final_state: bool = False,
    state_v_first: bool = False, cu_seqlens: Tensor | None = None, *, reverse: bool = False, **options: Any,
) -> Result:  # fmt: skip
    """M = exp(g) M + k vᵀ with log-decays g ``[B,T,H]``, or g_gamma ``[H]`` for every token; or none."""
    refuse("chunk_simple_gla", **options)
    if g_gamma is not None:
        forbid("chunk_simple_gla", "there are log-decays g_gamma already", g=g)
        g = g_gamma.float().expand(*v.shape[:2], -1)
    form = Form(scaled(scale, k), decay="" if g is None else "head")
    gates = {} if g is None else {"g": g}
    return recur(
        "chunk_simple_gla", form, q=q, k=k, v=v, **gates, initial_state=initial_state, reverse=reverse,
        output_final_state=output_final_state, state_v_first=state_v_first, cu_seqlens=cu_seqlens,
    )  # fmt: skip


fused_recurrent_simple_gla = placed(8, "reverse", "state_v_first", "cu_seqlens")(chunk_simple_gla)
fused_chunk_simple_gla = placed(8, "cu_seqlens")(chunk_simple_gla)


@checked
def parallel_simple_gla(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None = None, scale: float | None = None,
    output_attentions: bool = False, cu_seqlens: Tensor | None = None, **options: Any,
) -> Result:  # fmt: skip
    """As ``chunk_simple_gla``, without states."""
    refuse("parallel_simple_gla", output_attentions=output_attentions, **options)
    return chunk_simple_gla(q, k, v, g, scale=scale, cu_seqlens=cu_seqlens)


@renamed
@checked
def chunk_retention(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, initial_state: Tensor | None = None,
    output_final_state: bool = False, cu_seqlens: Tensor | None = None, *, reverse: bool = False,
    state_v_first: bool = False, **options: Any,
) -> Result:  # fmt: skip
    """Simple GLA whose head h decays by 1 − 2^(−5−h)."""
    refuse("chunk_retention", **options)
    rates = (1 - torch.exp2(-5 - torch.arange(v.shape[2], dtype=torch.float32, device=q.device))).log()
    return chunk_simple_gla(q, k, v, None, rates, scale, initial_state, output_final_state, state_v_first, cu_seqlens,
                            reverse=reverse)  # fmt: skip


fused_recurrent_retention = placed(6, "reverse", "state_v_first", "cu_seqlens")(chunk_retention)
fused_chunk_retention = chunk_retention


@checked
def parallel_retention(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, output_attentions: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Result:  # fmt: skip
    """As ``chunk_retention``, without states."""
    refuse("parallel_retention", output_attentions=output_attentions)
    return chunk_retention(q, k, v, scale, cu_seqlens=cu_seqlens)


@renamed
@checked
def chunk_gla(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float | None = None, initial_state: Tensor | None = None,
    output_final_state: bool = False, state_v_first: bool = False, cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None, *, reverse: bool = False, **options: Any,
) -> Result:  # fmt: skip
    """M = diag(exp(g)) M + k vᵀ with log-decays g ``[B,T,H,K]``."""
    refuse("chunk_gla", **options)
    return recur(
        "chunk_gla", Form(scaled(scale, k), decay="key"), q=q, k=k, v=v, g=g, initial_state=initial_state,
        output_final_state=output_final_state, state_v_first=state_v_first, reverse=reverse, cu_seqlens=cu_seqlens,
    )  # fmt: skip


fused_chunk_gla = chunk_gla


@renamed
@checked
def fused_recurrent_gla(
    q: Tensor, k: Tensor, v: Tensor, gk: Tensor | None = None, gv: Tensor | None = None, scale: float | None = None,
    initial_state: Tensor | None = None, output_final_state: bool = False, reverse: bool = False,
    state_v_first: bool = False, cu_seqlens: Tensor | None = None, **options: Any,
) -> Result:  # fmt: skip
    """As ``chunk_gla``, with log-decays gk ``[B,T,H,K]`` of key channels, or gv ``[B,T,H,V]`` of value channels."""
    refuse("fused_recurrent_gla", **options)
    if gk is not None:
        forbid("fused_recurrent_gla", "states decay per key or per value channel", gv=gv)
    states = {"initial_state": initial_state, "output_final_state": output_final_state, "state_v_first": state_v_first}
    if gv is not None:
        form = Form(scaled(scale, k), decay="value")
        return recur("fused_recurrent_gla", form, q=q, k=k, v=v, g=gv, cu_seqlens=cu_seqlens, reverse=reverse, **states)  # type: ignore[arg-type]
    if gk is None:
        return chunk_simple_gla(q, k, v, scale=scale, cu_seqlens=cu_seqlens, reverse=reverse, **states)  # type: ignore[arg-type]
    return chunk_gla(q, k, v, gk, scale, cu_seqlens=cu_seqlens, reverse=reverse, **states)  # type: ignore[arg-type]


@checked
def chunk_linear_attn(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, initial_state: Any = None,
    output_final_state: bool = False, normalize: bool = True, cu_seqlens: Tensor | None = None, *,
    reverse: bool = False, **options: Any,
) -> tuple[Tensor, Any]:  # fmt: skip
    """M = M + k vᵀ; normalised, each output is divided by the sum of its scores, and states come with sums of keys.

    A normalised state is the pair (``[N,H,K,V]``, z ``[N,1,H,K]``), given and returned.
    """
    refuse("chunk_linear_attn", **options)
    if normalize:
        return normalised(q, k, v, scaled(scale, k), initial_state, output_final_state, reverse, cu_seqlens)
    return chunk_simple_gla(q, k, v, None, None, scale, initial_state, output_final_state, False, cu_seqlens,
                            reverse=reverse)  # fmt: skip


fused_chunk_linear_attn = chunk_linear_attn


@checked
def fused_recurrent_linear_attn(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, initial_state: Any = None,
    output_final_state: bool = False, reverse: bool = False, normalize: bool = False,
    cu_seqlens: Tensor | None = None, **options: Any,
) -> tuple[Tensor, Any]:  # fmt: skip
    """As ``chunk_linear_attn``, but not normalised unless asked."""
    return chunk_linear_attn(q, k, v, scale, initial_state, output_final_state, normalize, cu_seqlens,
                             reverse=reverse, **options)  # fmt: skip
