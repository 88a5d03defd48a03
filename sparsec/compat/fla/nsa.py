"""Native sparse attention by flash-linear-attention's name: mean-pooled, chosen and windowed blocks under gates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sparsec.compat.fla.attention import aligned, rowed
from sparsec.compat.fla.options import checked, need
from sparsec.compat.fla.run import scaled
from sparsec.frontends import patterns
from sparsec.frontends.activations import keys_values, queries
from sparsec.ir import build as lang
from sparsec.ir.error import InputError
from sparsec.ir.node import Node
from sparsec.ir.variant import Variant, variant
from sparsec.runtime.compiled import Compiled, compile


@dataclass(frozen=True, slots=True)
class Form:
    """Which branches there are, and their sizes in tokens.

    Attributes:
        block: tokens per block.
        slots: blocks per query, as chosen or as given.
        given: whether they are given.
        counts: whether the numbers of given blocks are.
        pooled: whether there is the branch of mean-pooled blocks.
        window: tokens of the window branch; 0 for none.
        scale: of the scores.
    """

    block: int
    slots: int
    given: bool
    counts: bool
    pooled: bool
    window: int
    scale: float


def declare(form: Form) -> Variant:
    """Inputs q, k, v, indices and counts where given, and, of several branches, gates g_slc, g_cmp, g_swa."""
    q, memory = queries(), keys_values(chunk=form.block)
    summaries = lang.summary(memory, size=form.block, stride=form.block, fields="kv")
    complete = f"(c + 1) * {form.block} - 1 <= i"
    chosen = _given(form) if form.given else _chosen(form, q, summaries, complete)
    outputs = {"slc": lang.attend(q, memory, chosen, lang.mask(memory, where="causal"), scale=form.scale)}
    if form.pooled:
        seen = lang.mask(summaries, where=complete.replace("c", "j"))
        outputs["cmp"] = lang.attend(q, summaries, seen, scale=form.scale)
    if form.window:
        outputs["swa"] = lang.attend(q, memory, lang.mask(memory, where=patterns.window(form.window)), scale=form.scale)
    if len(outputs) == 1:
        return variant("nsa", outputs["slc"])
    gates = [lang.input(f"g_{name}", "B TQ H") for name in outputs]
    return variant("nsa", lang.merge(*outputs.values(), gates=gates, fn="gated"))


def _given(form: Form) -> Node:
    counts = lang.input("counts", "B TQ HKV", "int32") if form.counts else None
    return lang.given(lang.input("indices", f"B TQ HKV {form.slots}", "int32"), counts=counts, size=form.block)


def _chosen(form: Form, q: Node, summaries: Node, complete: str) -> Node:
    scores = lang.score(q, summaries, scale=form.scale, rounding="storage")
    worth = lang.reduce(scores, over="group", pre="softmax", visible=complete)
    forced = f"(c == 0) | (c == i // {form.block} - 1) | (c == i // {form.block})"
    return lang.topk(worth, k=form.slots, size=form.block, eligible="started", forced=forced)


@cache
def _compiled(form: Form, device: str) -> Compiled:
    return compile(declare(form), target=device)


@checked
def parallel_nsa(
    q: Tensor, k: Tensor, v: Tensor, g_cmp: Tensor | None = None, g_slc: Tensor | None = None,
    g_swa: Tensor | None = None, block_indices: Tensor | None = None, block_counts: Tensor | int = 16,
    block_size: int = 64, window_size: int = 0, scale: float | None = None, cu_seqlens: Any = None,
) -> Tensor:  # fmt: skip
    """g_slc · chosen + g_cmp · pooled + g_swa · window, gates ``[B,TQ,HQ]`` -> ``[B,TQ,HQ,V]``; no g_slc is 1.

    Blocks are ``block_indices`` ``[B,TQ,H,S]`` (those beyond the keys are left out), or the ``block_counts`` best by
    the probabilities of the pooled branch, of which the first, the query's own and the one before are forced.
    Raises InputError where neither indices nor g_cmp are given, or numbers per query without indices.
    """
    counted = isinstance(block_counts, Tensor)
    if block_indices is None:
        need("parallel_nsa", g_cmp=g_cmp)
        if counted:
            rule = "numbers per query belong to given indices"
            raise InputError("parallel_nsa: block_counts", "a tensor", rule, "an int, or block_indices")
    if window_size:
        need("parallel_nsa", g_swa=g_swa)
    slots = int(block_counts) if block_indices is None else block_indices.shape[-1]
    form = Form(block_size, slots, block_indices is not None, counted, g_cmp is not None, window_size, scaled(scale, k))
    inputs = dict(zip("qkv", aligned(q, k, v), strict=True)) | _lists(k, block_indices, block_counts, block_size)
    gates = {"g_slc": g_slc, "g_cmp": g_cmp, "g_swa": g_swa if window_size else None}
    several = form.pooled or form.window > 0
    if several:
        inputs |= _gates(q, gates)
    o = rowed(_compiled(form, q.device.type), "parallel_nsa", inputs, cu_seqlens)[..., : v.shape[-1]]
    return o if several or g_slc is None else o * g_slc.unsqueeze(-1)


def _gates(q: Tensor, gates: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """Gates in the dtype of q, 1 for that of the chosen blocks where there is none."""
    ones = q.new_ones(q.shape[:3]) if gates["g_slc"] is None else gates["g_slc"]
    return {name: x.to(q.dtype) for name, x in (gates | {"g_slc": ones}).items() if x is not None}


def _lists(k: Tensor, indices: Tensor | None, counts: Tensor | int, block: int) -> dict[str, Tensor]:
    """Given indices, and numbers of them, as int32; -1 for blocks that begin after the last key."""
    if indices is None:
        return {}
    kept = indices.masked_fill(indices * block >= k.shape[1], -1).to(torch.int32)
    return {"indices": kept} | ({"counts": counts.to(torch.int32)} if isinstance(counts, Tensor) else {})
