"""A bias on routing scores, right before the choice: lists, weights, gradients through them, steps and documents."""

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
from sparsec.plan.plan import PlanError

MEAN = "{size = 16, stride = 16}"
GROUP = "reduce(score(q, marks)) {over = group, op = sum}"
SHARES = "reduce(score(q, marks)) {over = group, op = sum, pre = softmax, visible = 4 * c + 7 <= i}"
POOLED = f"reduce({SHARES}) {{over = overlap, size = 8, stride = 4, block = 16, importance = overlap}}"
RAW = {"group": (MEAN, GROUP), "pooled": ("{size = 8, stride = 4}", POOLED)}
FADED = "score - 0.05 * (i - 16 * j) + 0.1 * h"
GIVEN = "score + slope[h] * prior[b, j, h]"
EVEN = "where(j % 2 == 0, score, -inf)"


def layer(fn: str, raw: str = "group", weigh: str = "stick") -> Variant:
    """Two chunks by biased scores, which weigh them too."""
    marks, scores = RAW[raw]
    more = ", slope: [HKV] float32, prior: [B, NC, HKV] float32" if fn == GIVEN else ""
    return sparsec.parse(f"""
variant biased(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV]{more}) {{
  memory = tokens(k, v) {{chunk = 16}}
  marks = summary(memory) {marks}
  scores = bias({scores}{", slope=slope, prior=prior" if fn == GIVEN else ""}) {{fn = {fn}}}
  chosen = topk(scores) {{k = 2, size = 16, eligible = 16 * c + 15 <= i, order = newest,
    selector_gradient = through_weights}}
  w = weights(scores, chosen) {{fn = {weigh}}}
  return attend(q, memory, chosen, weights=w) {{per = chunk}}
}}""")


def drawn(variant: Variant, tokens: int = 83, dtype: str = "float32", batch: int = 2) -> dict[str, Tensor]:
    """Inputs of a small layer."""
    sizes: dict[str, Any] = {"TQ": tokens, "TK": tokens, "H": 4, "HKV": 2, "D": 16, "DV": 16, "B": batch}
    sizes |= {"NC": -(-tokens // 16)} if "prior" in variant.inputs else {}
    return sparsec.inputs(variant, dtype=getattr(torch, dtype), seed=3, **sizes)


def truth(variant: Variant, x: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The oracle's output, and the leaves that it came from."""
    leaves = {name: t.double().requires_grad_(name in "qkv") for name, t in x.items()}
    found = oracle(variant, leaves, form="vector")
    assert isinstance(found, Tensor)
    return found, leaves


@pytest.mark.parametrize("target", ["interpreter", "cpu"])
@pytest.mark.parametrize(
    ("fn", "raw", "weigh"),
    [(FADED, "group", "stick"), (FADED, "pooled", "softmax"), (GIVEN, "pooled", "stick"), (GIVEN, "group", "sigmoid")],
)
def test_outputs_and_gradients_agree_with_the_oracle(fn: str, raw: str, weigh: str, target: str) -> None:
    variant = layer(fn, raw, weigh)
    x = drawn(variant)
    mine = {name: t.clone().requires_grad_(name in "qkv") for name, t in x.items()}
    out, (want, theirs) = sparsec.compile(variant, target=target)(**mine), truth(variant, x)
    assert isinstance(out, Tensor)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
    out.backward(weight)
    want.backward(weight.double())
    assert check(out.detach(), want.detach(), "float32", "o")
    for name in "qkv":
        ours, right = mine[name].grad, theirs[name].grad
        assert ours is not None and right is not None
        assert (found := check(ours, right, "float32", "o" if name == "v" else "grad")), (name, found)


@pytest.mark.parametrize("raw", RAW)
def test_what_is_compared_depends_on_the_bias(raw: str) -> None:
    variant = layer(FADED, raw)
    x = drawn(variant)
    want, without = (truth(v, x)[0] for v in (variant, layer("score", raw)))
    assert (without - want).norm() > 0.01 * want.norm()


def test_a_bias_of_minus_infinity_ranks_chunks_last() -> None:
    """They are eligible still, and weigh nothing under a softmax."""
    variant = layer(EVEN, weigh="softmax")
    x = drawn(variant, 120)
    out = sparsec.compile(variant, target="interpreter")(**x)
    assert isinstance(out, Tensor)
    assert check(out, truth(variant, x)[0].detach(), "float32", "o")


def test_lists_without_weights() -> None:
    lines = (line for line in layer(FADED).text().split("\n") if "weights(" not in line)
    plain = sparsec.parse("\n".join(lines).replace(", weights=w", "").replace("per = chunk", "per = joint"))
    x = drawn(plain)
    out = sparsec.compile(plain, target="interpreter")(**x)
    assert isinstance(out, Tensor)
    assert check(out, truth(plain, x)[0].detach(), "float32", "o")


@pytest.mark.parametrize("raw", RAW)
def test_steps_equal_the_forward(raw: str) -> None:
    variant = layer(FADED, raw)
    x = drawn(variant)
    compiled = sparsec.compile(variant, target="interpreter")
    cache, found = compiled.init_cache(batch=2, max_length=83), []
    for a, b in [(0, 70), (70, 71), (71, 83)]:
        found.append(compiled.decode(cache, **{name: t[:, a:b] for name, t in x.items()}))
    assert check(torch.cat(found, 1), truth(variant, x)[0].detach(), "float32", "o")  # type: ignore[arg-type]


def test_packed_documents_count_from_their_own_start() -> None:
    variant, ends = layer(FADED), [0, 37, 38, 90]
    x = drawn(variant, 90, batch=1)
    lengths = torch.tensor(ends, dtype=torch.int32)
    out = sparsec.compile(variant, target="interpreter")(cu_seqlens=lengths, **{n: t[0] for n, t in x.items()})
    assert isinstance(out, Tensor)
    for a, b in pairwise(ends):
        want = truth(variant, {name: t[:, a:b] for name, t in x.items()})[0]
        torch.testing.assert_close(out[None, a:b].double(), want.detach(), rtol=1e-4, atol=1e-5)


def test_what_does_more_than_add_has_no_gradient_in_a_kernel() -> None:
    variant = layer("2.0 * score")
    x = {name: t.requires_grad_() for name, t in drawn(variant).items()}
    with pytest.raises(PlanError, match="only a bias that adds to a score has a gradient"):
        sparsec.compile(variant, target="interpreter")(**x)


def test_a_bias_under_a_reduction_is_refused() -> None:
    marks = "reduce(bias(score(q, marks)) {fn = score - 0.1 * (i - 16 * j)}) {over = group, op = sum}"
    inner = sparsec.parse(f"""
variant under(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV]) {{
  memory = tokens(k, v) {{chunk = 16}}
  marks = summary(memory) {MEAN}
  chosen = topk({marks}) {{k = 2, size = 16, eligible = 16 * c + 15 <= i}}
  return attend(q, memory, chosen)
}}""")
    with pytest.raises(PlanError, match="write the bias last"):
        sparsec.compile(inner, target="interpreter")(**drawn(inner))
