"""Cosines as routing scores: lists, weights, gradients through them, steps and documents."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.ir.variant import Variant
from sparsec.oracle import oracle
from sparsec.oracle.error import check
from sparsec.testing.whole.decoding import decoded
from sparsec.testing.whole.trained import oracle_gradients, wrong_on

SCORE = "score(q, marks) {fn = cosine, scale = 3.0}"
SHARES = f"reduce({SCORE}) {{over = group, op = sum, pre = softmax, visible = 4 * c + 7 <= i}}"
RAW = {
    "sum": f"reduce({SCORE}) {{over = group, op = sum}}",
    "mean": f"reduce({SCORE}) {{over = group, op = mean}}",
    "biased": f"bias(reduce({SCORE}) {{over = group, op = sum}}) {{fn = score - 0.05 * (i - 16 * j)}}",
    "pooled": f"reduce({SHARES}) {{over = overlap, size = 8, stride = 4, block = 16, importance = overlap}}",
    "head": SCORE,
}


def layer(raw: str, weigh: str = "stick") -> Variant:
    """Two chunks by cosines of their means."""
    size, stride = (8, 4) if raw == "pooled" else (16, 16)
    return sparsec.parse(f"""
variant cosines(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV]) {{
  memory = tokens(k, v) {{chunk = 16}}
  marks = summary(memory) {{size = {size}, stride = {stride}}}
  scores = {RAW[raw]}
  chosen = topk(scores) {{k = 2, size = 16, eligible = 16 * c + 15 <= i, order = newest,
    scope = {"head" if raw == "head" else "kv_head"}, selector_gradient = through_weights}}
  w = weights(scores, chosen) {{fn = {weigh}}}
  return attend(q, memory, chosen, weights=w) {{per = chunk}}
}}""")


def drawn(variant: Variant, tokens: int = 83, dtype: str = "float32", batch: int = 2) -> dict[str, Tensor]:
    """Inputs of a small layer, with lengths that differ, zero among them."""
    sizes: dict[str, Any] = {"TQ": tokens, "TK": tokens, "H": 4, "HKV": 2, "D": 16, "DV": 16, "B": batch}
    x = sparsec.inputs(variant, dtype=getattr(torch, dtype), seed=3, **sizes)
    x["k"] = x["k"] * torch.linspace(0.2, 2.0, tokens)[:, None, None].to(x["k"].dtype)
    x["q"][0, tokens // 2] = 0.0
    return x


def truth(variant: Variant, x: dict[str, Tensor]) -> Tensor:
    """The oracle's output."""
    found = oracle(variant, x, form="vector")
    assert isinstance(found, Tensor)
    return found


def agrees(variant: Variant, target: str, dtype: str = "float32") -> None:
    """Outputs and gradients."""
    assert wrong_on(sparsec.compile(variant, target=target), drawn(variant, dtype=dtype), dtype) == []


@pytest.mark.parametrize("raw", RAW)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs_and_gradients_agree_with_the_oracle(raw: str, dtype: str) -> None:
    agrees(layer(raw), "interpreter", dtype)


@pytest.mark.parametrize(("raw", "weigh"), [("mean", "softmax"), ("pooled", "stick"), ("head", "sigmoid")])
def test_the_cpu_agrees(raw: str, weigh: str) -> None:
    agrees(layer(raw, weigh), "cpu")


def test_cosines_are_no_dots() -> None:
    variant = layer("sum")
    x = drawn(variant)
    dots = sparsec.parse(variant.text().replace("fn = cosine", "fn = dot"))
    want, other = truth(variant, x), truth(dots, x)
    assert (other - want).norm() > 0.01 * want.norm()


@pytest.mark.parametrize("raw", ["sum", "pooled"])
def test_steps_equal_the_forward(raw: str) -> None:
    variant = layer(raw)
    x = drawn(variant)
    compiled = sparsec.compile(variant, target="interpreter")
    (found,) = decoded(compiled, compiled.init_cache(batch=2, max_length=83), x, (70, 1, 12))
    assert check(found, truth(variant, x), "float32", "o")


def test_packed_documents_agree_with_each_by_itself() -> None:
    variant, ends = layer("sum"), [0, 37, 38, 90]
    x = drawn(variant, 90, batch=1)
    leaves = {name: t[0].clone().requires_grad_() for name, t in x.items()}
    out = sparsec.compile(variant, target="interpreter")(cu_seqlens=torch.tensor(ends, dtype=torch.int32), **leaves)
    assert isinstance(out, Tensor)
    out.square().sum().backward()
    weight = 2.0 * out.detach()
    for a, b in pairwise(ends):
        theirs = oracle_gradients(variant, {name: t[:, a:b] for name, t in x.items()}, weight[None, a:b])
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            torch.testing.assert_close(leaf.grad[None, a:b].double(), theirs[name], rtol=1e-4, atol=1e-5)
