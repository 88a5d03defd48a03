"""Softmax attention by flash-linear-attention's names: causal, windowed, with sinks, with forget gates; MoBA."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from sparsec.compat.fla.options import checked, refuse
from sparsec.compat.fla.run import check_packed, scaled
from sparsec.frontends import patterns
from sparsec.frontends.activations import keys_values, queries
from sparsec.ir import build as lang
from sparsec.ir.node import Node
from sparsec.ir.variant import Variant, variant
from sparsec.runtime.compiled import Compiled, compile

COLUMNS = 16
"""Kernels on GPUs take head dims that this divides."""

FADING = "score + (decay[b, i, h] - decay[b, j, h])"


def declare(window: int | None, fading: bool, sink: bool, scale: float | None) -> Variant:
    """Causal attention with inputs q, k, v and, where they are used, log-gates g and logits sink."""
    memory = keys_values()
    seen = lang.mask(memory, where="causal" if window is None else patterns.window(window))
    how: dict[str, Node | str] = {"sink": lang.input("sink", "H", "float32")} if sink else {}
    if fading:
        how |= {"bias": FADING, "decay": lang.prefix(lang.input("g", "B TK H float32"))}
    return variant("attention", lang.attend(queries(), memory, seen, scale=scale, **how))  # type: ignore[arg-type]


@cache
def _attention(device: str, window: int | None, fading: bool, sink: bool, scale: float | None) -> Compiled:
    return compile(declare(window, fading, sink, scale), target=device)


def declare_moba(block: int, slots: int, scale: float) -> Variant:
    """The preset with a scale of its own, since rows may be filled up."""
    memory = keys_values(chunk=block)
    gates = lang.score(queries(), lang.summary(memory, size=block, stride=block), scale=1.0, detach=True)
    chosen = lang.topk(gates, k=slots, size=block, scope="head", eligible="started", forced=f"c == i // {block}")
    return variant("moba", lang.attend(queries(), memory, chosen, lang.mask(memory, where="causal"), scale=scale))


@cache
def _moba(device: str, block: int, slots: int, scale: float) -> Compiled:
    return compile(declare_moba(block, slots, scale), target=device)


@checked
def parallel_attn(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None = None, scale: float | None = None,
    window_size: int | None = None, cu_seqlens: Tensor | None = None, chunk_indices: Tensor | None = None, *,
    sink_bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Causal attention, q ``[B,T,HQ,K]`` -> ``[B,T,HQ,V]``.

    ``window_size`` tokens are seen, the query's own among them; scores fade by log-gates g ``[B,T,HQ]``;
    ``sink_bias`` ``[HQ]`` are logits that only join the denominator. Head dims that are no multiple of 16 are filled
    up with zeros on GPUs.
    """
    scale, cols = scaled(scale, k), v.shape[-1]
    layer = _attention(q.device.type, window_size, g is not None, sink_bias is not None, scale)
    q, k, v = aligned(q, k, v)
    inputs = {"q": q, "k": k, "v": v} | ({} if g is None else {"g": g.float()})
    shared = {} if sink_bias is None else {"sink": sink_bias.float()}
    return rowed(layer, "parallel_attn", inputs, cu_seqlens, **shared)[..., :cols]


@checked
def parallel_forgetting_attn(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float | None = None, window_size: int | None = None,
    cu_seqlens: Tensor | None = None, **options: Any,
) -> Tensor:  # fmt: skip
    """``parallel_attn`` whose log-gates g ``[B,T,HQ]`` are needed (FoX)."""
    refuse("parallel_forgetting_attn", **options)
    return parallel_attn(q, k, v, g, scale, window_size, cu_seqlens)


@checked
def parallel_moba(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, chunk_size: int, topk: int
) -> Tensor:
    """MoBA over packed documents ``[1,T,H,D]`` or ``[T,H,D]``: ``topk`` chunks per query and head, its own counted.

    As in fla, one chunk alone means causal attention to all. Head dims are filled up as those of ``parallel_attn``.
    """
    if q.dim() == 3:
        return parallel_moba(q[None], k[None], v[None], cu_seqlens, max_seqlen, chunk_size, topk)[0]
    if topk <= 1:
        return parallel_attn(q, k, v, cu_seqlens=cu_seqlens)
    layer, cols = _moba(q.device.type, chunk_size, topk, scaled(None, k)), v.shape[-1]
    q, k, v = aligned(q, k, v)
    return rowed(layer, "parallel_moba", {"q": q, "k": k, "v": v}, cu_seqlens)[..., :cols]


def aligned(*rows: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values as kernels take them: filled up on GPUs."""
    return tuple(x if x.device.type == "cpu" else filled(x) for x in rows)


def filled(x: Tensor) -> Tensor:
    """Zeros behind each row up to a multiple of 16 columns, which tensor cores take; they add nothing to a product."""
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % COLUMNS)) if x.shape[-1] % COLUMNS else x


def rowed(layer: Compiled, op: str, inputs: dict[str, Tensor], cu_seqlens: Any, **shared: Tensor) -> Tensor:
    """A layer with one output over a batch, or over the documents of one row; ``shared`` inputs have no tokens.

    ``cu_seqlens`` may be a pair, of queries and of keys.
    """
    inputs = {name: x.contiguous() for name, x in inputs.items()}
    if cu_seqlens is None:
        done = layer(**inputs, **shared)
    else:
        ends = cu_seqlens if isinstance(cu_seqlens, tuple) else (cu_seqlens,)
        check_packed(op, inputs["q"], ends[0], None)
        both = dict(zip(("cu_seqlens", "cu_seqlens_k"), (end.to(torch.int32) for end in ends), strict=False))
        done = layer(**{name: x[0] for name, x in inputs.items()}, **shared, **both)
    assert isinstance(done, Tensor)
    return done if cu_seqlens is None else done[None]
