"""Gradients of given sinks through lists of chunks: beside all chosen chunks, and inside each of them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.ir.variant import Variant
from sparsec.oracle.error import check
from sparsec.plan.attention.sink_specs import ChunkSinkGrad
from sparsec.testing.kernels.gathered import attention
from sparsec.testing.triton.ahead import ARCHITECTURES, unfit
from sparsec.testing.whole.trained import oracle_gradients, wrong_on


def layer(per: str, size: int = 16, k: int = 2) -> Variant:
    """Two chunks by the sum of a group's scores, and a sink per head."""
    each = ", weights=weights(scores, chosen) {fn = sigmoid}" if per == "chunk" else ""
    return sparsec.parse(f"""
variant sunk(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV], s: [H] float32) {{
  memory = tokens(k, v) {{chunk = {size}}}
  marks = summary(memory) {{size = {size}, stride = {size}}}
  scores = reduce(score(q, marks)) {{over = group, op = sum}}
  chosen = topk(scores) {{k = {k}, size = {size}, eligible = {size} * c <= i, selector_gradient = through_weights}}
  seen = mask(memory) {{where = j <= i}}
  return attend(q, memory, chosen, seen, sink=s{each}) {{per = {per}, sink = given}}
}}""")


def drawn(
    variant: Variant, tokens: int, dtype: str = "float32", heads: int = 4, kv_heads: int = 2
) -> dict[str, Tensor]:
    """Inputs whose sinks weigh as much as keys do."""
    sizes: dict[str, Any] = {"TQ": tokens, "TK": tokens, "H": heads, "HKV": kv_heads, "D": 16, "DV": 32, "B": 2}
    x = sparsec.inputs(variant, dtype=getattr(torch, dtype), seed=3, **sizes)
    return {**x, "s": 2.0 + torch.randn(heads, generator=torch.Generator().manual_seed(1))}


def agrees(variant: Variant, x: dict[str, Tensor], dtype: str, target: str) -> None:
    """Outputs and all gradients are within the oracle's bounds."""
    assert wrong_on(sparsec.compile(variant, target=target), x, dtype) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_gradients_agree_with_the_oracle(per: str, dtype: str) -> None:
    variant = layer(per)
    agrees(variant, drawn(variant, 83, dtype), dtype, "interpreter")


@pytest.mark.parametrize("per", ["joint", "chunk"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 1), (2, 2)])
def test_groups(per: str, heads: int, kv_heads: int) -> None:
    variant = layer(per)
    agrees(variant, drawn(variant, 40, heads=heads, kv_heads=kv_heads), "float32", "interpreter")


@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_the_cpu_agrees(per: str) -> None:
    variant = layer(per, size=96)
    agrees(variant, drawn(variant, 250), "float32", "cpu")


@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_the_sink_alone(per: str) -> None:
    variant = layer(per)
    x = drawn(variant, 50)
    sink = x["s"].clone().requires_grad_()
    out = sparsec.compile(variant, target="interpreter")(**{**x, "s": sink})
    assert isinstance(out, Tensor)
    out.sum().backward()
    assert sink.grad is not None
    assert check(sink.grad, oracle_gradients(variant, x, torch.ones_like(out))["s"], "float32", "grad")


@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_packed_documents_share_their_sinks(per: str) -> None:
    variant, ends = layer(per), [0, 37, 38, 90]
    x = drawn(variant, 90)
    x = {name: t if name == "s" else t[:1] for name, t in x.items()}
    leaves = {name: (t if name == "s" else t[0]).clone().requires_grad_() for name, t in x.items()}
    out = sparsec.compile(variant, target="interpreter")(cu_seqlens=torch.tensor(ends, dtype=torch.int32), **leaves)
    assert isinstance(out, Tensor)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
    out.backward(weight)
    each = [
        oracle_gradients(variant, {n: t if n == "s" else t[:, a:b] for n, t in x.items()}, weight[None, a:b])
        for a, b in pairwise(ends)
    ]
    sink = leaves["s"].grad
    assert sink is not None
    torch.testing.assert_close(sink.double(), torch.stack([e["s"] for e in each]).sum(0), rtol=1e-4, atol=1e-5)


def inside(group: int, dim: int, dtype: str = "bfloat16") -> ChunkSinkGrad:
    """Of a layer of a real model."""
    forward = attention(group, 4, (dim, dim), per="chunk", chunk=64, slots=16, dtype=dtype, sink="s")
    return ChunkSinkGrad("pull", forward, "do", "ds", dtype)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_defaults_fit_without_spills(arch: str, tmp_path: Path) -> None:
    layers = {"wide": (inside(16, 128),), "small": (inside(4, 64),), "fp32": (inside(4, 128, "float32"),)}
    assert unfit(layers, arch, tmp_path, wide=lambda program: False) == {}
