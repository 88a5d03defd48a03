"""Declared layers whose lists, pools or weights kernels once left something out of: kernels against the oracle."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.oracle import oracle
from sparsec.plan.plan import PlanError
from sparsec.testing.whole.agreement import HEAD, agree

LANDMARKS = ", l: [B, (TK + 15) // 16, HKV, D]"
ORDERED = (
    HEAD
    + LANDMARKS
    + """, w: [B, TQ, HKV, 3] float32) {
 m = tokens(k, v) {chunk = 16}
 s = reduce(score(q, l)) {over = group, op = sum}
 c = topk(s) {k = 3, size = 16, eligible = 16 * c + 16 <= i, order = %s}
 return attend(q, m, c, weights=w) {per = chunk}
}"""
)


@pytest.mark.parametrize("order", ["newest", "oldest", "score"])
def test_given_weights_follow_the_order_of_the_list(order: str) -> None:
    agree(ORDERED % order)


SHARES = (
    HEAD
    + """) {
 m = tokens(k, v) {chunk = 16}
 s = reduce(score(q, summary(m) {fn = mean, size = 16, stride = 16, fields = k})) {over = group, op = sum}
 c = topk(s) {k = 2, size = 16, eligible = 16 * c <= i, order = %s}
 return attend(q, m, c, weights=weights(s, c) {fn = softmax, renormalise = false}) {per = chunk}
}"""
)


@pytest.mark.parametrize("target", ["interpreter", "cpu"])
def test_weights_may_be_shares_of_all_that_is_eligible(target: str) -> None:
    agree(SHARES % "newest", target)


POOLED = (
    HEAD
    + """) {
 m = tokens(k, v) {chunk = 16}
 l = summary(m) {fn = mean, size = 8, stride = 4, fields = k}
 c = topk(%s) {k = 2, size = 16, eligible = 16 * c <= i, scope = %s}
 return attend(q, m, c)
}"""
)
GROUPED = "reduce(reduce(score(q, l)) {over = group, op = %s}) {%s}"
BLOCKS = "over = blocks, op = %s, kernel = %d, stride = 4, padding = %d"
OVERLAP = "over = overlap, size = 8, stride = 4, block = 16, importance = overlap"
POOLS = {
    "mean": (GROUPED % ("sum", BLOCKS % ("mean", 5, 1)), "kv_head"),
    "sum": (GROUPED % ("max", BLOCKS % ("sum", 4, 3)), "kv_head"),
    "max": (GROUPED % ("mean", BLOCKS % ("max", 4, 0)), "kv_head"),
    "shares per head, pooled": (f"reduce(score(q, l)) {{{BLOCKS % ('mean', 6, 1)}, pre = softmax}}", "head"),
    "shares per head, overlapping": (f"reduce(score(q, l)) {{{OVERLAP}, pre = softmax, visible = 4*c <= i}}", "head"),
}


@pytest.mark.parametrize("name", POOLS)
def test_pools(name: str) -> None:
    agree(POOLED % POOLS[name])


def test_a_pool_of_means_on_the_cpu() -> None:
    agree(POOLED % POOLS["mean"], "cpu")


REFUSED = {
    "a softmax after the group's reduction": GROUPED % ("sum", OVERLAP + ", pre = softmax"),
    "a mean over overlapping windows": GROUPED % ("sum", OVERLAP + ", op = mean"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_kernel_carries_out_is_refused_in_a_sentence(name: str) -> None:
    with pytest.raises((PlanError, sparsec.DeclarationError), match=r"pre = softmax|op = mean"):
        agree(POOLED % (REFUSED[name], "kv_head"))


def test_shares_of_all_that_is_eligible_of_lists_that_queries_share_are_refused() -> None:
    with pytest.raises(PlanError, match="shares of all that is eligible"):
        agree((SHARES % "newest").replace("k = 2,", "k = 2, query_block = 4,"))


BEST = (
    HEAD
    + """) {
 m = tokens(k, v) {chunk = 16}
 s = score(q, summary(m) {fn = mean, size = 16, stride = 16, fields = k})
 return topk(s) {k = 2, size = 16, scope = head, eligible = 16 * c + 16 <= i}
}"""
)


@pytest.mark.parametrize("target", ["interpreter", "cpu"])
def test_a_score_of_nan_ranks_highest_whatever_its_sign(target: str) -> None:
    variant = sparsec.parse(BEST)
    inputs = sparsec.inputs(variant, TQ=40, TK=40, H=4, HKV=2, D=16)
    inputs["k"][0, 20, 0, 3] = -torch.tensor(math.nan).abs()
    found = sparsec.compile(variant, target=target)(None, **inputs)
    assert isinstance(found, Tensor) and bool((found[0, 33:, :2, 0] == 1).all())
    truth = oracle(variant, inputs, form="loop")
    assert isinstance(truth, Tensor) and torch.equal(found.long(), truth)


LEARNED = (
    HEAD
    + """, l: [4, HKV, D]) {
 m = tokens(k, v) {chunk = 16}
 c = topk(%s) {k = 2, size = 16, scope = %s, eligible = 16 * c <= i}
 return attend(q, m, c)
}"""
)


@pytest.mark.parametrize("target", ["interpreter", "cpu"])
def test_landmarks_may_be_learned(target: str) -> None:
    agree(LEARNED % ("reduce(score(q, l)) {over = group}", "kv_head"), target)


def test_learned_landmarks_serve_every_batch_entry() -> None:
    agree(LEARNED % ("score(q, l)", "head"), batch=3)


NESTED = (
    HEAD
    + """) {
 m = tokens(k, v) {chunk = 8}
 s = summary(summary(m) {fn = mean, size = 2, stride = 2, fields = k}) {fn = max, size = 4, stride = 4, fields = k}
 c = topk(reduce(score(q, s)) {over = group}) {k = 2, size = 8, eligible = 8 * c <= i}
 return attend(q, m, c)
}"""
)


def test_windows_of_windows_stand_for_all_their_tokens() -> None:
    agree(NESTED)
