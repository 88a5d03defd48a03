"""Gradients behind a softmax and pools, in the tile interpreter against autograd in fp64, and whole layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import sparsec
from sparsec.ir.variant import Variant
from sparsec.lower.registry import lower_kernel
from sparsec.plan.plan import PlanError
from sparsec.plan.specs import Pool, Selector
from sparsec.testing.kernels.pooled import OUTPUTS, SEEN, Sizes, draw, grad, selector, truth
from sparsec.testing.whole.packed_gradients import packed_agrees
from sparsec.testing.whole.trained import oracle_gradients, wrong_on
from sparsec.tile.schedule import Schedule, ScheduleError
from sparsec.tile.verify import verify

Run = Callable[..., None]
SMALL = Schedule(rows=16, block=16, splits=2)
SIZES = Sizes()
POOLS = {
    "none": None,
    "overlap": Pool("overlap", 8, 4, 16),
    "literal": Pool("paper_literal", 8, 4, 16),
    "sum": Pool("sum", 4, 4, 16, kernel=4, stride_blocks=4),
    "mean": Pool("mean", 4, 4, 16, kernel=5, stride_blocks=4, padding=1),
    "every second": Pool("sum", 4, 4, 8, kernel=1, stride_blocks=2),
}


def check(
    run: Run, s: Selector, n: Sizes = SIZES, schedule: Schedule = SMALL, queries: bool = True, keys: bool = True
) -> None:
    """Run exactly and compare what is asked for."""
    x, lowered = draw(s, n, True), lower_kernel(grad(s, queries, keys), schedule)
    for step in lowered.steps:
        verify(step.program)
    run(lowered, x, n.params, mode="exact")
    want = truth(s, n, x)
    for name, asked in zip(OUTPUTS, (queries, keys), strict=True):
        if asked:
            torch.testing.assert_close(x[name], want[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("pool", POOLS)
def test_pools(run: Run, pool: str, softmax: bool) -> None:
    s = selector(pool=POOLS[pool], softmax=softmax)
    check(run, replace(s, visible=None) if not softmax and pool in ("mean", "none") else s)


@pytest.mark.parametrize(("group", "heads", "kv_heads"), [("mean", 6, 2), ("sum", 3, 1), (None, 4, 2), ("sum", 2, 2)])
def test_groups(run: Run, group: str | None, heads: int, kv_heads: int) -> None:
    check(run, selector(heads, kv_heads, group=group))


@pytest.mark.parametrize("queries", [True, False])
@pytest.mark.parametrize("softmax", [True, False])
def test_one_side_alone(run: Run, queries: bool, softmax: bool) -> None:
    check(run, selector(softmax=softmax), queries=queries, keys=not queries)


@pytest.mark.parametrize(("tq", "units", "offset"), [(1, 1, 0), (5, 40, 3), (40, 16, 0), (33, 3, 100)])
def test_lengths(run: Run, tq: int, units: int, offset: int) -> None:
    """Tokens that see no summary hand nothing back."""
    check(run, selector(), Sizes(tq, units, offset=offset))


@pytest.mark.parametrize("splits", [1, 5])
def test_shares_of_the_tokens(run: Run, splits: int) -> None:
    check(run, selector(dim=48), schedule=Schedule(rows=16, block=32, splits=splits))


def test_maxima_of_probabilities_are_refused() -> None:
    with pytest.raises(ScheduleError, match="a maximum"):
        lower_kernel(grad(selector(group="max")), SMALL)


@pytest.mark.parametrize(("queries", "keys"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 1), (2, 2)])
@pytest.mark.parametrize("pool", ["none", "sum"])
def test_maxima_over_heads(run: Run, pool: str, heads: int, kv_heads: int, queries: bool, keys: bool) -> None:
    """A head has the gradient of what it scored highest of its group."""
    s = selector(heads, kv_heads, group="max", softmax=False, pool=POOLS[pool], weights="stick")
    check(run, s if pool != "none" else replace(s, visible=None), queries=queries, keys=keys)


SHARES = {"head": (4, 2, None), "sum": (6, 2, "sum"), "mean": (4, 1, "mean"), "max": (6, 2, "max"), "1": (2, 2, "max")}


@pytest.mark.parametrize(("queries", "keys"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("case", SHARES)
def test_shares_of_all_that_is_eligible(run: Run, case: str, queries: bool, keys: bool) -> None:
    """Weights of a softmax over more than was chosen pull at all of it."""
    heads, kv_heads, group = SHARES[case]
    s = selector(heads, kv_heads, group=group, softmax=False, pool=None, visible=None, weights="softmax_all")
    check(run, replace(s, eligible=SEEN), queries=queries, keys=keys)


@pytest.mark.parametrize(("weights", "pool"), [("stick", None), ("softmax_all", None), ("stick", "sum")])
def test_heads_that_are_equal_share_the_gradient_of_their_maximum(run: Run, weights: str, pool: str | None) -> None:
    s = selector(4, 1, group="max", softmax=False, pool=POOLS[pool or "none"], visible=None, weights=weights)
    s = replace(s, eligible=SEEN if weights == "softmax_all" else None)
    x, n = draw(s, SIZES, True), SIZES
    for name in ("q", "keys"):  # products of few bits, which no order of a sum rounds
        x[name] = (x[name] * 8).round() / 8
    x["q"][:, :, 1] = x["q"][:, :, 3]
    x["q"][:, ::2] = x["q"][:, ::2, :1]
    lowered = lower_kernel(grad(s), SMALL)
    run(lowered, x, n.params, mode="exact")
    for name, found in truth(s, n, x).items():
        torch.testing.assert_close(x[name], found, rtol=1e-9, atol=1e-9)


MARKS = "reduce(score(q, marks)) {over = group, op = sum, pre = softmax, visible = 4 * c + 7 <= i}"
WORTH = f"reduce({MARKS}) {{over = overlap, size = 8, stride = 4, block = 16, importance = overlap}}"


def layer(fn: str) -> Variant:
    """NSA's importance as weights of chunks."""
    return sparsec.parse(f"""
variant important(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV]) {{
  memory = tokens(k, v) {{chunk = 16}}
  marks = summary(memory) {{size = 8, stride = 4}}
  scores = {WORTH}
  chosen = topk(scores) {{k = 3, size = 16, eligible = 16 * c <= i, forced = c == i // 16, order = newest,
    selector_gradient = through_weights}}
  w = weights(scores, chosen) {{fn = {fn}}}
  return attend(q, memory, chosen, weights=w) {{per = chunk}}
}}""")


FINE, MOST = "reduce(score(q, fine)) {over = group", "{over = blocks, op = max, kernel = %d, stride = 4, padding = %d}"
MEANS = "summary(memory) {size = 16, stride = 16}"
CHAINS = {
    "maximum, stick": ("reduce(score(q, marks)) {over = group, op = max}", "fn = stick"),
    "maximum, softmax": ("reduce(score(q, marks)) {over = group, op = max}", "fn = softmax"),
    "maximum, bias": ("bias(reduce(score(q, marks)) {over = group, op = max}) {fn = score + 0.1 * j}", "fn = sigmoid"),
    "shares": ("score(q, marks)", "renormalise = false"),
    "shares of sums": ("reduce(score(q, marks)) {over = group, op = sum}", "renormalise = false"),
    "shares of means": ("reduce(score(q, marks)) {over = group, op = mean}", "renormalise = false"),
    "shares of maxima": ("reduce(score(q, marks)) {over = group, op = max}", "renormalise = false"),
    "shares of cosines": ("reduce(score(q, marks) {fn = cosine, scale = 4}) {over = group}", "renormalise = false"),
    "shares, straight": ("reduce(score(q, marks)) {over = group}", "renormalise = false"),
    "blocks": (f"reduce({FINE}}}) {MOST % (4, 0)}", "fn = softmax"),
    "blocks that overlap": (f"reduce({FINE}, op = max}}) {MOST % (5, 1)}", "fn = sigmoid"),
    "blocks of shares": (f"reduce({FINE}, pre = softmax, visible = 4 * c + 7 <= i}}) {MOST % (5, 1)}", "fn = stick"),
    "blocks of heads": (f"reduce(score(q, fine) {{fn = cosine, scale = 4}}) {MOST % (4, 0)}", "fn = softmax"),
    "maximum, straight": ("reduce(score(q, marks)) {over = group, op = max}", "fn = softmax"),
}


def weighed(case: str) -> Variant:
    """Chunks that weigh by the maximum over their heads, or by their share of all that could be chosen."""
    scores, how = CHAINS[case]
    scope = "kv_head" if "group" in scores else "head"
    learns = "straight_through" if "straight" in case else "through_weights"
    return sparsec.parse(f"""
variant shares(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV]) {{
  memory = tokens(k, v) {{chunk = 16}}
  marks = {MEANS}
  fine = summary(memory) {{size = 8, stride = 4}}
  scores = {scores}
  chosen = topk(scores) {{k = 2, size = 16, eligible = 16 * c <= i, forced = c == i // 16, order = newest,
    selector_gradient = {learns}, scope = {scope}}}
  w = weights(scores, chosen) {{{how}}}
  return attend(q, memory, chosen, weights=w) {{per = chunk}}
}}""")


GROUPED = "reduce(score(q, marks)) {over = group}"
STRAIGHT = {
    "plain": GROUPED,
    "cosine": "reduce(score(q, marks) {fn = cosine, scale = 4}) {over = group}",
    "bias": f"bias({GROUPED}) {{fn = score + 0.1 * j}}",
    "maximum": "reduce(score(q, marks)) {over = group, op = max}",
    "maximum, bias": "bias(reduce(score(q, marks)) {over = group, op = max}) {fn = score - 0.1 * j}",
    "softmax": "reduce(score(q, marks)) {over = group, pre = softmax, visible = 16 * c + 15 <= i}",
    "cosine, bias": "bias(reduce(score(q, marks) {fn = cosine, scale = 4}) {over = group}) {fn = score - 0.1 * j}",
    "blocks": f"reduce(reduce(score(q, fine)) {{over = group}}) {MOST % (5, 1)}",
}


def straight(case: str) -> Variant:
    """Chunks of one softmax whose choice hands their gradients on."""
    return sparsec.parse(f"""
variant straight(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV]) {{
  memory = tokens(k, v) {{chunk = 16}}
  marks = {MEANS}
  fine = summary(memory) {{size = 8, stride = 4}}
  scores = {STRAIGHT[case]}
  chosen = topk(scores) {{k = 2, size = 16, eligible = 16 * c <= i, forced = c == i // 16,
    selector_gradient = straight_through}}
  return attend(q, memory, chosen)
}}""")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", STRAIGHT)
def test_choices_that_hand_gradients_straight_through_agree_with_the_oracle(case: str, dtype: str) -> None:
    agrees(straight(case), dtype)


@pytest.mark.parametrize("case", ["cosine", "plain"])
def test_lists_that_queries_share_pass_nothing_straight_through(case: str) -> None:
    """Their gradient is the first query's of a block, which no kernel sums: refused rather than wrong."""
    text = straight(case).text().replace("straight_through", "straight_through, query_block = 16")
    with pytest.raises(PlanError, match="lists that queries share"):
        agrees(sparsec.parse(text), "float32")


@pytest.mark.parametrize("case", ["cosine", "bias", "maximum"])
def test_packed_documents_whose_choice_is_passed_straight(case: str) -> None:
    packed_agrees(straight(case))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CHAINS)
def test_weights_of_maxima_and_shares_of_all_agree_with_the_oracle(case: str, dtype: str) -> None:
    agrees(weighed(case), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("fn", ["stick", "softmax", "sigmoid"])
def test_a_layer_agrees_with_the_oracle(fn: str, dtype: str) -> None:
    agrees(layer(fn), dtype)


def agrees(variant: Variant, dtype: str) -> None:
    """Gradients of a layer are the oracle's, which differ without the scores' share."""
    x = sparsec.inputs(variant, dtype=getattr(torch, dtype), seed=3, TQ=83, TK=83, H=4, HKV=2, D=16, DV=16, B=2)
    assert wrong_on(sparsec.compile(variant, target="interpreter"), x, dtype) == []
    weight = torch.randn(2, 83, 4, 16, generator=torch.Generator().manual_seed(5))
    silent = variant.text().replace("through_weights", "none").replace("straight_through", "none")
    without = sparsec.parse(silent)
    want, other = (oracle_gradients(v, x, weight) for v in (variant, without))
    for name in ("q", "k"):
        assert (other[name] - want[name]).norm() > 0.02 * want[name].norm(), "the scores' share is seen"


def test_packed_documents_agree_with_each_by_itself() -> None:
    packed_agrees(layer("stick"))


@pytest.mark.parametrize("case", ["maximum, stick", "shares of sums", "shares", "blocks of shares"])
def test_packed_documents_of_such_weights(case: str) -> None:
    packed_agrees(weighed(case))
