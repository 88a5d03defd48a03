"""Lists that queries share, with weights of each query's own scores: outputs and every gradient are the oracle's."""

from __future__ import annotations

import pytest
import torch

import sparsec
from sparsec.ir.variant import Variant
from sparsec.testing.whole.packed_gradients import packed_agrees
from sparsec.testing.whole.trained import oracle_gradients, wrong_on

SUM = "reduce(score(q, marks)) {over = group}"
MAX = "reduce(score(q, marks)) {over = group, op = max}"
COSINE = "reduce(score(q, marks) {fn = cosine, scale = 4}) {over = group}"
SHARES = "reduce(score(q, fine)) {over = group, pre = softmax, visible = 4 * c + 7 <= i}"
IMPORTANCE = f"reduce({SHARES}) {{over = overlap, size = 8, stride = 4, block = 16, importance = overlap}}"
SCORES = {
    "sums": (SUM, "fn = softmax", "score"),
    "sums, sigmoid": (SUM, "fn = sigmoid", "score"),
    "sums, sink": (SUM, "fn = softmax_sink", "oldest"),
    "sums, stick": (SUM, "fn = stick", "newest"),
    "heads": ("score(q, marks)", "fn = softmax", "newest"),
    "maximum": (MAX, "fn = softmax", "score"),
    "cosine": (COSINE, "fn = softmax", "score"),
    "bias": (f"bias({SUM}) {{fn = score - 0.1 * j}}", "fn = softmax", "score"),
    "importance": (IMPORTANCE, "fn = sigmoid", "score"),
    "importance, stick": (IMPORTANCE, "fn = stick", "newest"),
}


def weighed(case: str, block: int = 8, learns: str = "through_weights") -> Variant:
    """Chunks that a block of queries reads, each query by weights of its own."""
    scores, fn, own = SCORES[case]
    scope = "kv_head" if "group" in scores else "head"
    return sparsec.parse(f"""
variant weighed(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV]) {{
  memory = tokens(k, v) {{chunk = 16}}
  marks = summary(memory) {{size = 16, stride = 16}}
  fine = summary(memory) {{size = 8, stride = 4}}
  scores = {scores}
  chosen = topk(scores) {{k = 2, size = 16, eligible = 16 * c <= i, forced = c == i // 16, order = {own},
    scope = {scope}, selector_gradient = {learns}, query_block = {block}}}
  w = weights(scores, chosen) {{{fn}}}
  return attend(q, memory, chosen, weights=w) {{per = chunk}}
}}""")


def agrees(variant: Variant, dtype: str, target: str = "interpreter") -> None:
    """Output and gradients are the oracle's, and those without the scores' share are others."""
    x = sparsec.inputs(variant, dtype=getattr(torch, dtype), seed=3, TQ=83, TK=83, H=4, HKV=2, D=16, DV=16, B=2)
    assert wrong_on(sparsec.compile(variant, target=target), x, dtype) == []
    weight = torch.randn(2, 83, 4, 16, generator=torch.Generator().manual_seed(5))
    silent = sparsec.parse(variant.text().replace("through_weights", "none").replace("straight_through", "none"))
    want, other = (oracle_gradients(v, x, weight) for v in (variant, silent))
    assert (other["q"] - want["q"]).norm() > 0.02 * want["q"].norm(), "the scores' share is seen"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", SCORES)
def test_weights_of_shared_lists_agree_with_the_oracle(case: str, dtype: str) -> None:
    agrees(weighed(case), dtype)


@pytest.mark.parametrize("case", ["sums", "importance"])
def test_on_the_cpu(case: str) -> None:
    agrees(weighed(case), "float32", "cpu")


@pytest.mark.parametrize("case", ["sums", "cosine"])
def test_weights_of_one_pass_straight(case: str) -> None:
    agrees(weighed(case, learns="straight_through"), "float32")


@pytest.mark.parametrize("block", [1, 5, 16, 48])
def test_blocks_of_any_length(block: int) -> None:
    agrees(weighed("sums", block), "float32")


def test_packed_documents_count_blocks_from_their_own_beginning() -> None:
    packed_agrees(weighed("bias"))
