"""Gradients through maxima of windows: as keys and values, as landmarks, where several tokens hold a maximum."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

import sparsec
from sparsec.testing.whole.trained import wrong_on

QKV = "q: [B, T, H, D], k: [B, T, HKV, D], v: [B, T, HKV, DV]"
POOLED = "attend(q, summary(m) {fn = max, size = SIZE, stride = STRIDE, fields = kv})"
CHOSEN = (
    """attend(q, m, chosen, mask(m) {where = j <= i}, weights=weights(scores, chosen) {fn = softmax}) {per = chunk}"""
)
RETRIEVED = """
  scores = reduce(score(q, summary(m) {fn = max, size = SIZE, stride = STRIDE})) {over = group, op = sum}
  chosen = topk(scores) {k = 2, size = SIZE, eligible = SIZE * c <= i, selector_gradient = through_weights}"""
BODIES = {"pooled": ("", POOLED), "retrieved": (RETRIEVED, CHOSEN)}


def layer(name: str, size: int = 16, stride: int = 16) -> sparsec.Variant:
    body, out = BODIES[name]
    text = f"variant {name}({QKV}) {{\n  m = tokens(k, v) {{chunk = SIZE}}{body}\n  return {out}\n}}"
    return sparsec.parse(text.replace("SIZE", str(size)).replace("STRIDE", str(stride)))


def drawn(variant: sparsec.Variant, tokens: int, dtype: str = "float32", heads: int = 4) -> dict[str, torch.Tensor]:
    sizes: dict[str, Any] = {"B": 2, "T": tokens, "H": heads, "HKV": 2, "D": 16, "DV": 32}
    return sparsec.inputs(variant, dtype=getattr(torch, dtype), seed=3, **sizes)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("pooled", "float32"), ("retrieved", "float32"), ("retrieved", "bfloat16"), ("retrieved", "float16")],
)
def test_gradients_agree_with_the_oracle(name: str, dtype: str) -> None:
    """Keys that are maxima lie far from 0 and near one another: of those q's gradient is out of half precision."""
    made = sparsec.compile(layer(name), target="interpreter")
    assert wrong_on(made, drawn(made.variant, 83, dtype), dtype) == []


@pytest.mark.parametrize(("size", "stride"), [(32, 16), (24, 8), (48, 16)])
def test_windows_that_overlap(size: int, stride: int) -> None:
    made = sparsec.compile(layer("pooled", size, stride), target="interpreter")
    assert wrong_on(made, drawn(made.variant, 101), "float32") == []


@pytest.mark.parametrize("target", ["interpreter", "cpu"])
def test_equals_share_a_gradient(target: str) -> None:
    """As the oracle's maximum has it: values on a coarse grid, of which a window's maximum has several."""
    made = sparsec.compile(layer("pooled", 32, 16), target=target)
    x = {name: t if name == "q" else (2.0 * t).round() / 2.0 for name, t in drawn(made.variant, 101).items()}
    assert wrong_on(made, x, "float32") == []


@pytest.mark.parametrize("name", BODIES)
def test_the_cpu_agrees(name: str) -> None:
    made = sparsec.compile(layer(name, 48, 48), target="cpu")
    assert wrong_on(made, drawn(made.variant, 250, heads=6), "float32") == []


def test_packed_documents_agree_with_each_alone() -> None:
    made, ends = sparsec.compile(layer("retrieved"), target="interpreter"), [0, 37, 38, 90]
    x = {name: t[0].requires_grad_() for name, t in drawn(made.variant, 90).items()}
    out = made(cu_seqlens=torch.tensor(ends, dtype=torch.int32), **x)
    assert isinstance(out, torch.Tensor)
    found = torch.autograd.grad(out.square().sum(), list(x.values()))
    each = [made(**{n: t[None, a:b] for n, t in x.items()}) for a, b in pairwise(ends)]
    total = torch.stack([o.square().sum() for o in each if isinstance(o, torch.Tensor)]).sum()
    want = torch.autograd.grad(total, list(x.values()))
    for mine, right in zip(found, want, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)
