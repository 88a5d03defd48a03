"""Declared layers where one kernel's names, lengths or orders could be taken for another's: kernels against the oracle.

Each text is a layer that once gave a wrong number or an error.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.ir.variant import dim_names
from sparsec.oracle import check, oracle
from sparsec.plan.plan import PlanError

HEAD = "variant v(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV]"
DIMS: dict[str, int] = {"TQ": 60, "TK": 60, "H": 4, "HKV": 2, "D": 16, "DV": 16, "TM": 33, "M": 3, "N": 2}


def agree(text: str, target: str = "interpreter", given: dict[str, Tensor] | None = None, batch: int = 1) -> None:
    """Every output of a declared layer on a target is the oracle's."""
    variant = sparsec.parse(text)
    known: dict[str, Any] = {name: size for name, size in DIMS.items() if name in dim_names(variant)}
    inputs = sparsec.inputs(variant, B=batch, **known) | (given or {})
    found = sparsec.compile(variant, target=target)(None, **inputs)
    truth = oracle(variant, inputs, form="loop")
    outputs, truths = (x if isinstance(x, tuple) else (x,) for x in (found, truth))
    for output, true in zip(outputs, truths, strict=True):
        verdict = check(output, true, "float32")
        assert verdict, verdict.sentence


LANDMARKS = ", l: [B, (TK + 15) // 16, HKV, D]"
OTHER = ", k2: [B, TM, HKV, D], v2: [B, TM, HKV, DV]"
SLOTS = ", ck: [M, HKV, D], cv: [M, HKV, DV]"
CHOSEN = """
 m = tokens(k, v) {chunk = 16}
 c = topk(reduce(score(q, l)) {over = group, op = sum}) {k = 2, size = 16, eligible = %s}
"""

LENGTHS = {
    "two lengths, one softmax": HEAD + OTHER + """) {
 m = tokens(k, v)
 m2 = tokens(k2, v2)
 o = merge(attend(q, m, mask(m) {where = j <= i}), attend(q, m2)) {fn = lse}
 return o, lse(o)
}""",
    "the shorter memory first": HEAD + OTHER + """) {
 m = tokens(k, v)
 m2 = tokens(k2, v2)
 return merge(attend(q, m2, mask(m2) {where = j < TM - 3}), attend(q, m, mask(m) {where = j < TK - 5})) {fn = lse}
}""",
    "a mask with holes over the shorter memory": HEAD + OTHER + """) {
 m = tokens(k, v)
 m2 = tokens(k2, v2)
 holes = mask(m2) {where = ((i - j) % 7 == 0) | (j == TM - 1) | (j * j % 11 == i % 11)}
 return merge(attend(q, m), attend(q, m2, holes)) {fn = lse}
}""",
    "a mask that begins inside a tile": HEAD + """) {
 m = tokens(k, v)
 return attend(q, m, mask(m) {where = j >= 3}), attend(q, m, mask(m) {where = (j >= 5) & (j < TK - 5)})
}""",
    "a mask that reads the number of slots": HEAD + SLOTS + """) {
 m = tokens(k, v)
 s = slots(ck, cv)
 return merge(attend(q, m, mask(m) {where = j >= M}), attend(q, s, mask(s) {where = j < M - 1})) {fn = lse}
}""",
    "slots called N, read by a selector": HEAD + LANDMARKS + SLOTS.replace("M,", "N,") + ") {"
    + CHOSEN % "(16 * c <= i) & (c < N)" + " return merge(attend(q, m, c), attend(q, slots(ck, cv))) {fn = sum}\n}",
    "a list of tokens that names TM": HEAD + LANDMARKS + OTHER + ") {" + CHOSEN % "(16 * c <= i) & (c < TM)" + """
 m2 = tokens(k2, v2)
 return merge(attend(q, m, c, mask(m) {where = j < TM + 9}) {bias = score - TM}, attend(q, m2)) {fn = sum}
}""",
}  # fmt: skip


NEAR_AND_FAR = (
    HEAD
    + """) {
 m = tokens(k, v)
 a = attend(q, m, mask(m) {where = (j <= i) & (i - j < 10)})
 b = attend(q, m, mask(m) {where = i - j >= 20})
 o = merge(%s) {fn = %s}
 return o, lse(o)
}"""
)
HOLES = NEAR_AND_FAR.replace("i - j >= 20", "(j * j %% 11 == i %% 7) & (j <= i)")


@pytest.mark.parametrize("branches", ["a, a, b", "a, b, b", "b, a, a, b", "a, a"])
def test_a_branch_named_twice_counts_twice(branches: str) -> None:
    agree(NEAR_AND_FAR % (branches, "lse"))


def test_a_branch_with_a_block_list_named_twice_counts_twice() -> None:
    agree(HOLES % ("a, b, b", "lse"))


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


def test_lists_that_queries_share_are_refused() -> None:
    with pytest.raises(PlanError, match="query_block"):
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


DENSE = (
    HEAD
    + """, tab: [H] %s) {
 m = tokens(k, v)
 return attend(q, m, mask(m, tab=tab) {where = (j <= i) & (tab[h] > -99)}, tab=tab) {bias = %s}
}"""
)
LISTED = (
    HEAD
    + """, tab: [H] %s, ids: [B, TQ, HKV, 2] int32) {
 m = tokens(k, v) {chunk = 16}
 past = mask(m, tab=tab) {where = (j <= i) & (tab[h] > -99)}
 return attend(q, m, given(ids) {size = 16}, past, tab=tab) {bias = %s}
}"""
)
BIASES = [("int32", "i - j"), ("float32", "0.0"), ("float32", "tab[h]"), ("int32", "tab[h]"), ("int32", "1")]
BIASES += [("int32", "score + tab[h]"), ("float32", "where(j < 3, 1, 2)"), ("int32", "j % 5")]


@pytest.mark.parametrize("bias", BIASES, ids=" ".join)
@pytest.mark.parametrize("text", [DENSE, LISTED], ids=["dense", "listed"])
def test_a_bias_is_a_number_whatever_it_reads(text: str, bias: tuple[str, str]) -> None:
    agree(text % bias)


def test_a_bias_without_scores_on_the_cpu() -> None:
    agree(DENSE % ("int32", "tab[h]"), "cpu")


def test_an_input_keeps_its_name_beside_an_output_of_that_name() -> None:
    agree(
        HEAD
        + """, o_lse: [B, TK, HKV, D]) {
 o = attend(q, tokens(k, v))
 return lse(o), attend(q, tokens(o_lse, v))
}"""
    )


SHORT = (
    HEAD
    + """, w: [20] float32, x: [B, (TK + 1) // 2] float32, y: [M, H] float32) {
 m = tokens(k, v)
 far = mask(m, w=w) {where = (w[i - j] < 1.0) | (j % 5 == 0)}
 return attend(q, m, far, w=w, x=x, y=y) {bias = score + w[j - 3] + x[b, i] + y[i - j, h]}
}"""
)


@pytest.mark.parametrize("target", ["interpreter", "cpu"])
def test_an_index_outside_a_captured_tensor_reads_the_nearest_element(target: str) -> None:
    agree(SHORT, target)


def test_so_does_one_read_through_a_list() -> None:
    listed = LISTED.replace("tab: [H] %s", "tab: [H] float32, w: [20] float32, x: [B, M] float32")
    agree(listed.replace("tab=tab) {bias = %s", "w=w, x=x) {bias = score + w[j] + x[b, i - 70]"))


MASKED = (
    HEAD
    + """, w: [H] int32) {
 m = tokens(k, v)
 return attend(q, m, mask(m, w=w) {where = %s})
}"""
)
LARGE = [
    "(i * 100000000 >= j * 100000000) & (w[h] < 9)", "(j <= i + 99999999999) & (w[h] < 9)",
    "(i * 2654435761 - j * 40503) % 1000003 % 5 < 2 + w[h] % 2", "(i - j) * w[h] * 70000 * 70000 % 11 <= 3",
    "where(j < 3, i * 3000000000, j) >= w[h]", "i * i * i * 1000 // (j + 1) % 3 != w[h]",
]  # fmt: skip
BY_ZERO = ["(i + j) % w[h] != 0", "(i - j) // w[h] >= 3", "(i + j) % (w[h] * 3) < 2", "j % (i - 7) != 1"]


@pytest.mark.parametrize("where", LARGE)
def test_whole_numbers_beyond_32_bits(where: str) -> None:
    agree(MASKED % where, given={"w": torch.tensor([1, 2, -3, 0], dtype=torch.int32)})


@pytest.mark.parametrize("where", BY_ZERO)
def test_dividing_by_zero_is_dividing_by_one(where: str) -> None:
    text = MASKED if "w" in where else MASKED.replace(", w: [H] int32", "").replace(", w=w", "")
    agree(text % where, given={"w": torch.tensor([1, 2, -3, 0], dtype=torch.int32)} if "w" in where else None)


@pytest.mark.parametrize("where", [LARGE[2], LARGE[5], BY_ZERO[0], BY_ZERO[3].replace("1", "w[h]")])
def test_whole_numbers_on_the_cpu(where: str) -> None:
    agree(MASKED % where, "cpu", {"w": torch.tensor([1, 2, -3, 0], dtype=torch.int32)})


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


@pytest.mark.parametrize("name", LENGTHS)
def test_every_memory_has_its_own_length(name: str) -> None:
    agree(LENGTHS[name])


@pytest.mark.parametrize("name", ["two lengths, one softmax", "a list of tokens that names TM"])
def test_every_memory_has_its_own_length_on_the_cpu(name: str) -> None:
    agree(LENGTHS[name], "cpu")
