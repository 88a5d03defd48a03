"""Ops that correct a state: delta rule, gated delta rule, KDA. States are fp32 ``[N,H,K,V]``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsec.compat.fla.gates import channel_gate, head_gate, rate
from sparsec.compat.fla.options import checked, need, placed, refuse, renamed, shaped
from sparsec.compat.fla.recurrence import Form
from sparsec.compat.fla.run import Result, recur, scaled


@checked
def chunk_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor | None = None, scale: float | None = None,
    initial_state: Tensor | None = None, output_final_state: bool = False, use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None, cu_seqlens_cpu: Tensor | None = None, **options: Any,
) -> Result:  # fmt: skip
    """M = M + beta k (v − Mᵀk)ᵀ with rates beta ``[B,T,H]``, 1 where there are none."""
    refuse("chunk_delta_rule", **options)
    rates = torch.ones(v.shape[:3], device=v.device) if beta is None else beta
    form = Form(scaled(scale, k), rule="delta", rated=True, unit=use_qk_l2norm_in_kernel)
    return recur(
        "chunk_delta_rule", form, q=q, k=k, v=v, beta=rates, initial_state=initial_state,
        output_final_state=output_final_state, cu_seqlens=cu_seqlens,
    )  # fmt: skip


fused_recurrent_delta_rule = fused_chunk_delta_rule = chunk_delta_rule


@renamed
@checked
def chunk_gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float | None = None,
    initial_state: Tensor | None = None, output_final_state: bool = False, use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False, allow_neg_eigval: bool = False, state_v_first: bool = False,
    cu_seqlens: Tensor | None = None, cu_seqlens_cpu: Tensor | None = None, chunk_indices: Tensor | None = None,
    cp_context: Any = None, *, use_gate_in_kernel: bool = False, A_log: Tensor | None = None,
    dt_bias: Tensor | None = None, **options: Any,
) -> Result:  # fmt: skip
    """The delta rule on a state that decays by exp(g), g ``[B,T,HV]``; HV may be a multiple of the heads of q and k.

    With ``use_gate_in_kernel`` g is −exp(A_log) · softplus(g + dt_bias), A_log and dt_bias ``[HV]``.
    """
    refuse("chunk_gated_delta_rule", cp_context=cp_context, **options)
    if use_gate_in_kernel:
        need("chunk_gated_delta_rule", A_log=A_log)
        g = head_gate(g, A_log, dt_bias)  # type: ignore[arg-type]
    form = Form(scaled(scale, k), rule="delta", decay="head", rated=True, unit=use_qk_l2norm_in_kernel)
    return recur(
        "chunk_gated_delta_rule", form, q=q, k=k, v=v, g=g,
        beta=rate(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval), initial_state=initial_state,
        output_final_state=output_final_state, state_v_first=state_v_first, cu_seqlens=cu_seqlens,
    )  # fmt: skip


chunk_gdn = chunk_gated_delta_rule


@placed(11, "use_gate_in_kernel", "A_log", "dt_bias", "use_beta_sigmoid_in_kernel", "allow_neg_eigval",
        "state_v_first", "cu_seqlens")  # fmt: skip
@renamed
@checked
def fused_recurrent_gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None = None, gk: Tensor | None = None, gv: Tensor | None = None,
    beta: Tensor | None = None, scale: float | None = None, initial_state: Tensor | None = None,
    output_final_state: bool = False, use_qk_l2norm_in_kernel: bool = False, **options: Any,
) -> Result:  # fmt: skip
    """As ``chunk_gated_delta_rule``; g may be missing, or be channel-wise as gk ``[B,T,HV,K]``, or both be given."""
    op = "fused_recurrent_gated_delta_rule"
    refuse(op, gv=gv)
    order = "arguments go g [B,T,HV], gk [B,T,HV,K], gv, beta [B,T,HV]"
    shaped(op, order, "give g, gk and beta by name", g=(g, 3), gk=(gk, 4), beta=(beta, 3))
    rates = torch.ones(v.shape[:3], device=v.device) if beta is None else beta
    shared: dict[str, Any] = {
        "scale": scale, "initial_state": initial_state, "output_final_state": output_final_state,
        "use_qk_l2norm_in_kernel": use_qk_l2norm_in_kernel, **options,
    }  # fmt: skip
    if gk is not None:
        if options.pop("use_gate_in_kernel", False):
            refuse(op, use_gate_in_kernel_with_gk=True)
        return chunk_kda(q, k, v, gk if g is None else gk + g.unsqueeze(-1), rates, **shared)
    none = torch.zeros(v.shape[:3], device=v.device)
    return chunk_gated_delta_rule(q, k, v, none if g is None else g, rates, **shared)


fused_recurrent_gdn = fused_recurrent_gated_delta_rule


@renamed
@checked
def chunk_kda(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float | None = None,
    initial_state: Tensor | None = None, output_final_state: bool = False, use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False, use_beta_sigmoid_in_kernel: bool = False, allow_neg_eigval: bool = False,
    safe_gate: bool = False, lower_bound: float | None = None, disable_recompute: bool = False,
    return_intermediate_states: bool = False, state_v_first: bool = False, cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None, cp_context: Any = None, use_graph: bool = False,
    max_num_seqs: int | None = None, *, A_log: Tensor | None = None, dt_bias: Tensor | None = None, **options: Any,
) -> Result:  # fmt: skip
    """The gated delta rule with log-decays g ``[B,T,HV,K]`` per key channel.

    With ``use_gate_in_kernel`` g is −exp(A_log) · softplus(g + dt_bias), or, with ``lower_bound``, that times
    σ(exp(A_log) (g + dt_bias)); A_log ``[HV]``, dt_bias ``[HV·K]``.
    """
    refuse("chunk_kda", cp_context=cp_context, return_intermediate_states=return_intermediate_states,
           use_graph=use_graph, max_num_seqs=max_num_seqs, **options)  # fmt: skip
    if use_gate_in_kernel:
        g = channel_gate("chunk_kda", g, A_log, dt_bias, lower_bound)
    form = Form(scaled(scale, k), rule="delta", decay="key", rated=True, unit=use_qk_l2norm_in_kernel)
    return recur(
        "chunk_kda", form, q=q, k=k, v=v, g=g, beta=rate(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval),
        initial_state=initial_state, output_final_state=output_final_state, state_v_first=state_v_first,
        cu_seqlens=cu_seqlens,
    )  # fmt: skip


@placed(10, "use_qk_l2norm_in_kernel", "use_gate_in_kernel", "use_beta_sigmoid_in_kernel", "allow_neg_eigval",
        "lower_bound", "state_v_first", "cu_seqlens")  # fmt: skip
@renamed
@checked
def fused_recurrent_kda(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, A_log: Tensor | None = None,
    dt_bias: Tensor | None = None, scale: float | None = None, initial_state: Tensor | None = None,
    output_final_state: bool = False, **options: Any,
) -> Result:  # fmt: skip
    """As ``chunk_kda``."""
    return chunk_kda(q, k, v, g, beta, scale, initial_state, output_final_state, A_log=A_log, dt_bias=dt_bias,
                     **options)  # fmt: skip
