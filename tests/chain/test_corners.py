"""Declared layers where a kernel could take one name, length or number for another: kernels against the oracle.

Each text is a layer that once gave a wrong number or an error.
"""

from __future__ import annotations

import pytest
import torch

from sparsec.testing.whole.agreement import HEAD, agree

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


@pytest.mark.parametrize("name", LENGTHS)
def test_every_memory_has_its_own_length(name: str) -> None:
    agree(LENGTHS[name])


@pytest.mark.parametrize("name", ["two lengths, one softmax", "a list of tokens that names TM"])
def test_every_memory_has_its_own_length_on_the_cpu(name: str) -> None:
    agree(LENGTHS[name], "cpu")
