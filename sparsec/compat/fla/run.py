"""A call of a recurrence in flash-linear-attention's layout: states ``[N,H,K,V]``, packed batches ``[1,T,H,D]``."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sparsec.compat.fla.recurrence import Form, compiled
from sparsec.ir.error import InputError

Result = tuple[Tensor, Tensor | None]


def scaled(scale: float | None, k: Tensor) -> float:
    """The scale of the scores, K^-½ unless given."""
    return float(k.shape[-1] ** -0.5 if scale is None else scale)


def recur(
    op: str, form: Form, *, initial_state: Tensor | None = None, output_final_state: bool = False,
    state_v_first: bool = False, reverse: bool = False, cu_seqlens: Tensor | None = None, **tensors: Tensor,
) -> Result:  # fmt: skip
    """Outputs ``[B,T,H,V]`` and, where asked for, the last states fp32 ``[N,H,K,V]``, of tensors by input name.

    Heads of q and k that are fewer than those of v are repeated. Raises InputError as a call of the compiled form.
    """
    form = replace(form, initial=initial_state is not None, final=output_final_state)
    inputs = {name: _prepared(name, x) for name, x in _grouped(tensors).items()}
    if initial_state is not None:
        inputs["m"] = _state(initial_state, state_v_first)
    if cu_seqlens is not None:
        check_packed(op, tensors["q"], cu_seqlens, initial_state)
    if reverse:
        inputs, cu_seqlens = turned(inputs, cu_seqlens)
    o, last = _call(form, inputs, cu_seqlens)
    if reverse:
        o, last = o.flip(1), last if last is None or cu_seqlens is None else last.flip(0)
    return o, None if last is None else _unstate(last, state_v_first)


def _call(form: Form, inputs: dict[str, Tensor], cu_seqlens: Tensor | None) -> Result:
    layer = compiled(form, inputs["q"].device.type)
    if cu_seqlens is None:
        done = layer(**inputs)
    else:
        packed = {name: x if name == "m" else x[0] for name, x in inputs.items()}
        done = layer(cu_seqlens=cu_seqlens.to(torch.int32), **packed)
    o, last = done if isinstance(done, tuple) else (done, None)
    return o if cu_seqlens is None else o[None], last


def check_packed(op: str, q: Tensor, cu_seqlens: Tensor, initial_state: Tensor | None) -> None:
    """Raises InputError unless documents lie in one row, and there is an initial state for each, if for any."""
    documents = len(cu_seqlens) - 1
    if q.shape[0] != 1:
        raise InputError(f"{op}: q", f"batch size {q.shape[0]}", "packed documents lie in one row", "a batch of 1")
    if initial_state is not None and initial_state.shape[0] != documents:
        given = f"{initial_state.shape[0]} states for {documents} documents"
        raise InputError(f"{op}: initial_state", given, "every document has its own", f"{documents} states")


def turned(inputs: dict[str, Tensor], cu_seqlens: Tensor | None) -> tuple[dict[str, Tensor], Tensor | None]:
    """The same tokens from the last to the first, documents included."""
    packed = cu_seqlens is not None
    flipped = {name: x if name == "m" and not packed else x.flip(0 if name == "m" else 1) for name, x in inputs.items()}
    return flipped, None if cu_seqlens is None else cu_seqlens[-1] - cu_seqlens.flip(0)


def _grouped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """q and k with a head for every head of v (grouped value attention)."""
    heads, states = tensors["k"].shape[2], tensors["v"].shape[2]
    if heads == states or not heads or states % heads:
        return tensors
    return tensors | {name: tensors[name].repeat_interleave(states // heads, 2) for name in "qk"}


def _prepared(name: str, x: Tensor) -> Tensor:
    """Contiguous; log-decays and rates in fp32."""
    return (x.float() if name in ("g", "beta") else x).contiguous()


def _state(x: Tensor, v_first: bool) -> Tensor:
    """``[N,H,K,V]`` or ``[N,H,V,K]`` in any dtype -> fp32 ``[N,1,H,K,V]``."""
    return (x.transpose(-1, -2) if v_first else x).float().unsqueeze(1).contiguous()


def _unstate(x: Tensor, v_first: bool) -> Tensor:
    """fp32 ``[N,1,H,K,V]`` -> ``[N,H,K,V]`` or ``[N,H,V,K]``."""
    x = x.squeeze(1)
    return x.transpose(-1, -2).contiguous() if v_first else x
