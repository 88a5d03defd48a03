"""Losses on the scores that a choice ranked, whatever they are made of: values and every gradient are the oracle's."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.ir.variant import Variant
from sparsec.oracle import oracle
from sparsec.testing.whole.trained import wrong_on

SUM, COSINE = "reduce(score(q, marks)) {over = group}", "score(q, marks) {fn = cosine, scale = 4}"
MAX, HEADS = "reduce(score(q, marks)) {over = group, op = max}", "score(q, marks)"
SEEN = "reduce(score(q, marks)) {over = group, pre = softmax, visible = 16 * c + 15 <= i}"
SHARES = "reduce(score(q, fine)) {over = group, pre = softmax, visible = 4 * c + 7 <= i}"
SCORES = {
    "cosine": f"reduce({COSINE}) {{over = group}}",
    "cosine of heads": COSINE,
    "bias": f"bias({SUM}) {{fn = score + 0.1 * j}}",
    "bias of heads": f"bias({HEADS}) {{fn = score - 0.1 * j}}",
    "cosine, bias": f"bias(reduce({COSINE}) {{over = group, op = mean}}) {{fn = score - 0.1 * j}}",
    "maximum": MAX,
    "maximum, bias": f"bias({MAX}) {{fn = score - 0.1 * j}}",
    "shares": SEEN,
    "importance": f"reduce({SHARES}) {{over = overlap, size = 8, stride = 4, block = 16, importance = overlap}}",
    "most": "reduce(reduce(score(q, fine)) {over = group}) {over = blocks, op = max, kernel = 4, stride = 4}",
    "pooled": "reduce(reduce(score(q, fine)) {over = group}) {over = blocks, op = sum, kernel = 4, stride = 4}",
}


def learning(case: str, query_block: int = 1) -> Variant:
    """Chunks whose scores learn from the attention that the chunks got."""
    scores = SCORES[case]
    scope = "kv_head" if "group" in scores else "head"
    return sparsec.parse(f"""
variant learning(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV]) {{
  memory = tokens(k, v) {{chunk = 16}}
  marks = summary(memory) {{size = 16, stride = 16}}
  fine = summary(memory) {{size = 8, stride = 4}}
  scores = {scores}
  chosen = topk(scores) {{k = 2, size = 16, eligible = 16 * c <= i, forced = c == i // 16, scope = {scope},
    selector_gradient = kl, query_block = {query_block}}}
  o = attend(q, memory, chosen)
  return o, aux(scores, chosen, target=o) {{fn = kl, coefficient = 0.5}}
}}""")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", SCORES)
def test_losses_and_their_gradients_agree_with_the_oracle(case: str, dtype: str) -> None:
    variant = learning(case)
    x = sparsec.inputs(variant, dtype=getattr(torch, dtype), seed=3, TQ=83, TK=83, H=4, HKV=2, D=16, DV=16, B=2)
    assert wrong_on(sparsec.compile(variant, target="interpreter"), x, dtype) == []


@pytest.mark.parametrize("case", ["cosine", "bias", "shares"])
def test_queries_that_share_a_list_have_losses_of_their_own_scores(case: str) -> None:
    variant = learning(case, query_block=8)
    x = sparsec.inputs(variant, seed=3, TQ=83, TK=83, H=4, HKV=2, D=16, DV=16, B=2)
    assert wrong_on(sparsec.compile(variant, target="interpreter"), x, "float32") == []


@pytest.mark.parametrize("case", ["cosine", "bias", "importance"])
def test_packed_documents_have_their_own_losses(case: str) -> None:
    """Values and gradients of a packed batch are those of each document."""
    variant, ends = learning(case), [0, 37, 38, 90]
    x = sparsec.inputs(variant, seed=3, TQ=90, TK=90, H=4, HKV=2, D=16, DV=16, B=1)
    leaves = {name: t[0].clone().requires_grad_() for name, t in x.items()}
    compiled = sparsec.compile(variant, target="interpreter")
    found = compiled(cu_seqlens=torch.tensor(ends, dtype=torch.int32), **leaves)
    assert isinstance(found, tuple)
    found[1].sum().backward()
    for a, b in pairwise(ends):
        own = {n: t[:, a:b].double().requires_grad_() for n, t in x.items()}
        want = oracle(variant, own, form="vector")
        assert isinstance(want, tuple) and isinstance(want[1], Tensor)
        torch.testing.assert_close(found[1][None, a:b].double(), want[1], rtol=1e-4, atol=1e-5)
        want[1].sum().backward()
        for name in ("q", "k"):
            mine, right = leaves[name].grad, own[name].grad
            assert mine is not None and right is not None
            torch.testing.assert_close(mine[None, a:b].double(), right, rtol=1e-4, atol=1e-5)
