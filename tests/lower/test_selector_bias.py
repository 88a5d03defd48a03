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
from sparsec.testing.whole.decoding import decoded
from sparsec.testing.whole.trained import wrong_on

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


def truth(variant: Variant, x: dict[str, Tensor]) -> Tensor:
    """The oracle's output."""
    found = oracle(variant, x, form="vector")
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("target", ["interpreter", "cpu"])
@pytest.mark.parametrize(
    ("fn", "raw", "weigh"),
    [(FADED, "group", "stick"), (FADED, "pooled", "softmax"), (GIVEN, "pooled", "stick"), (GIVEN, "group", "sigmoid")],
)
def test_outputs_and_gradients_agree_with_the_oracle(fn: str, raw: str, weigh: str, target: str) -> None:
    variant = layer(fn, raw, weigh)
    assert wrong_on(sparsec.compile(variant, target=target), drawn(variant), "float32", learned="qkv") == []


@pytest.mark.parametrize("raw", RAW)
def test_what_is_compared_depends_on_the_bias(raw: str) -> None:
    variant = layer(FADED, raw)
    x = drawn(variant)
    want, without = (truth(v, x) for v in (variant, layer("score", raw)))
    assert (without - want).norm() > 0.01 * want.norm()


def test_a_bias_of_minus_infinity_ranks_chunks_last() -> None:
    """They are eligible still, and weigh nothing under a softmax."""
    variant = layer(EVEN, weigh="softmax")
    x = drawn(variant, 120)
    out = sparsec.compile(variant, target="interpreter")(**x)
    assert isinstance(out, Tensor)
    assert check(out, truth(variant, x), "float32", "o")


def test_lists_without_weights() -> None:
    lines = (line for line in layer(FADED).text().split("\n") if "weights(" not in line)
    plain = sparsec.parse("\n".join(lines).replace(", weights=w", "").replace("per = chunk", "per = joint"))
    x = drawn(plain)
    out = sparsec.compile(plain, target="interpreter")(**x)
    assert isinstance(out, Tensor)
    assert check(out, truth(plain, x), "float32", "o")


@pytest.mark.parametrize("raw", RAW)
def test_steps_equal_the_forward(raw: str) -> None:
    variant = layer(FADED, raw)
    x = drawn(variant)
    compiled = sparsec.compile(variant, target="interpreter")
    (found,) = decoded(compiled, compiled.init_cache(batch=2, max_length=83), x, (70, 1, 12))
    assert check(found, truth(variant, x), "float32", "o")


def test_packed_documents_count_from_their_own_start() -> None:
    variant, ends = layer(FADED), [0, 37, 38, 90]
    x = drawn(variant, 90, batch=1)
    lengths = torch.tensor(ends, dtype=torch.int32)
    out = sparsec.compile(variant, target="interpreter")(cu_seqlens=lengths, **{n: t[0] for n, t in x.items()})
    assert isinstance(out, Tensor)
    for a, b in pairwise(ends):
        want = truth(variant, {name: t[:, a:b] for name, t in x.items()})
        torch.testing.assert_close(out[None, a:b].double(), want, rtol=1e-4, atol=1e-5)


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
