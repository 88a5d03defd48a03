"""Key ranges against brute force: nothing visible lies outside, nothing hidden lies in an interior."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from sparsec.scalar.bounds import Bounded, Unbounded, key_ranges
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import Expr, Kind, constant, var
from sparsec.scalar.functions import maximum, minimum, where
from sparsec.scalar.parse import parse

LENGTH = 48
KINDS: dict[str, Kind] = {"w": "int", "doc": "int", "table": "int"}
i, j, h = var("i"), var("j"), var("h")


def environment(head: int) -> dict[str, Any]:
    """Captured tensors and the head."""
    doc = torch.arange(LENGTH)[None] // 10
    return {"h": head, "b": 0, "w": torch.tensor([5, 17]), "doc": doc, "TK": LENGTH, "table": torch.arange(LENGTH) % 7}


def check(predicate: Expr, found: Bounded, tile: int, head: int) -> None:
    """Compares the ranges of every tile of queries with the predicate itself."""
    at = torch.arange(LENGTH)
    env = environment(head)
    visible = torch.as_tensor(evaluate(predicate, {**env, "i": at[:, None], "j": at})).expand(LENGTH, LENGTH)
    for start in range(0, LENGTH, max(tile, 4)):
        rows = visible[start : start + tile]
        ends = env | {"i_lo": start, "i_hi": start + len(rows) - 1}
        covered = torch.zeros(LENGTH, dtype=torch.bool)
        for r in found.ranges:
            lo, hi, full_lo, full_hi = (int(evaluate(x, ends)) for x in (r.lo, r.hi, r.full_lo, r.full_hi))
            assert lo >= 0
            covered |= (lo <= at) & (at < hi)
            interior = (full_lo <= at) & (at < full_hi)
            assert rows[:, interior].all(), (str(predicate), start, str(r))
            assert not (r.residual and bool(interior.any()))
        assert not rows[:, ~covered].any(), (str(predicate), start)
        check_order(found, ends)


def check_order(found: Bounded, ends: dict[str, Any]) -> None:
    """Ranges that are said to ascend do."""
    spans = [(int(evaluate(r.lo, ends)), int(evaluate(r.hi, ends))) for r in found.ranges]
    if found.ordered:
        assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(spans))


SMALL = st.integers(1, 20)
CAUSAL = st.just(j <= i)
BANDS = st.one_of(
    st.builds(lambda w: i - j < w, SMALL),
    st.builds(lambda w: abs(i - j) < w, SMALL),
    st.builds(lambda s: j < s, SMALL),
    st.builds(lambda s: j >= s, SMALL),
    st.builds(lambda d: i - j == d, st.integers(0, 12)),
    st.builds(lambda k: i // k == j // k, SMALL),
    st.builds(lambda k, n: j // k >= i // k - n, SMALL, st.integers(0, 3)),
    st.builds(lambda k, a: (j + 1) * k - a <= i, SMALL, st.integers(0, 2)),
    st.builds(lambda k, a: j * k + a <= i, SMALL, st.integers(0, 30)),
    st.builds(lambda k: j >= i - i % k, SMALL),
    st.builds(lambda d, w: (i - j) // d < w, SMALL, SMALL),
    st.builds(lambda k, w: j < i + w - (i % k), SMALL, SMALL),
    st.builds(lambda k: 3 * j - 2 * i <= k, st.integers(-20, 20)),
    st.builds(lambda s: minimum(i, j) < s, SMALL),
    st.builds(lambda s: maximum(i - s, 2 * j) <= maximum(i, s), SMALL),
    st.builds(lambda k, a: j // k == (i // k * 7 + h + a) % 11, SMALL, SMALL),
    st.builds(lambda s: where(h == 0, i - j, j - i) < s, SMALL),
    st.just(parse("i - j < w[h]", None, KINDS)),
    st.just(parse("i - j < where(i < 20, 8, w[h])", None, KINDS)),
    st.just(parse("j < TK - 3", None, KINDS)),
)
EXTRA = st.one_of(
    st.builds(lambda d: (i - j) % d == 0, SMALL),
    st.builds(lambda k: j % k >= k - 1, SMALL),
    st.builds(lambda s: i >= s, SMALL),
    st.builds(lambda s: i != s, SMALL),
    st.builds(lambda s: j != s, SMALL),
    st.just(h < 1),
    st.just(parse("doc[b, i] == doc[b, j]", None, KINDS)),
    st.just(parse("j < table[i]", None, KINDS)),
)
TERMS = st.builds(lambda band, rest: band & rest, BANDS, st.one_of(st.just(constant(True)), CAUSAL, BANDS, EXTRA))
MASKS = st.recursive(
    TERMS, lambda inner: st.builds(lambda a, b: a | b, inner, inner) | st.builds(lambda a, b: a & b, inner, inner),
    max_leaves=4,
)  # fmt: skip


@given(MASKS, st.sampled_from([1, 5, 16]), st.integers(0, 1))
def test_nothing_visible_is_missed_and_no_interior_needs_a_mask(mask: Expr, tile: int, head: int) -> None:
    found = key_ranges(mask)
    assume(isinstance(found, Bounded))  # hypothesis complains if few are
    assert isinstance(found, Bounded)
    check(mask, found, tile, head)


@given(st.one_of(BANDS, EXTRA), st.sampled_from([4, 16]), st.integers(0, 1))
def test_negations(mask: Expr, tile: int, head: int) -> None:
    found = key_ranges(~mask & (j <= i))
    assert isinstance(found, Bounded), found
    check(~mask & (j <= i), found, tile, head)


@pytest.mark.parametrize(
    ("text", "lo", "hi", "full_lo", "full_hi"),
    [
        ("j <= i", "0", "i_hi + 1", "0", "i_lo + 1"),
        ("(j <= i) & (i - j < 512)", "maximum(i_lo - 511, 0)", "i_hi + 1", "maximum(i_hi - 511, 0)", "i_lo + 1"),
        ("(j + 1) * 64 - 1 <= i", "0", "(i_hi + 1) // 64", "0", "(i_lo + 1) // 64"),
        ("j * 16 + 31 <= i", "0", "(i_hi + 1) // 16 - 1", "0", "(i_lo + 1) // 16 - 1"),
        ("i // 8 == j // 8", "8 * (i_lo // 8)", "8 * (i_hi // 8) + 8", "8 * (i_hi // 8)", "8 * (i_lo // 8) + 8"),
        ("j >= 100", "100", "2147483647", "100", "2147483647"),
        ("True", "0", "2147483647", "0", "2147483647"),
    ],
)  # fmt: skip
def test_bounds_are_tight(text: str, lo: str, hi: str, full_lo: str, full_hi: str) -> None:
    found = key_ranges(parse(text))
    assert isinstance(found, Bounded)
    [r] = found.ranges
    assert [str(x) for x in (r.lo, r.hi, r.full_lo, r.full_hi)] == [lo, hi, full_lo, full_hi]
    assert not r.residual


@pytest.mark.parametrize(
    ("text", "number", "ordered"),
    [
        ("(j <= i) & ((i - j < 16) | (j < 4))", 2, True),
        ("(i - j < 16) & (j <= i) | (j < 4)", 2, False),
        ("(j <= i) & ((i // 8 - j // 8 <= 2) | (j // 8 < 2))", 2, True),
        ("(j <= i) & ((i == j) | (i - j == 1) | (i - j == 2) | (i - j == 4) | (i - j == 8))", 5, True),
        ("(j <= i) & ((i - j < w[h]) | (j < 4))", 2, True),
    ],
)
def test_unions_are_ordered_where_that_can_be_proved(text: str, number: int, ordered: bool) -> None:
    mask = parse(text, None, KINDS)
    found = key_ranges(mask)
    assert isinstance(found, Bounded)
    check(mask, found, 8, 0)
    assert len(found.ranges) == number
    assert found.ordered is ordered


def residues(text: str) -> list[tuple[bool, bool]]:
    """What each range of a mask says of its residual."""
    found = key_ranges(parse(text, None, KINDS))
    assert isinstance(found, Bounded)
    return [(r.residual, r.sparse_residual) for r in found.ranges]


def test_residuals_are_reported() -> None:
    assert residues("(j <= i) & ((i - j) % 4 == 0)") == [(True, True)]
    assert residues("(j <= i) & (i - j < 64) & ((i - j) % 4 == 0)") == [(True, False)]
    assert residues("(j < 64) & ((i - j) % 4 == 0)") == [(True, False)]
    assert residues("(j >= 64) & ((i - j) % 4 == 0)") == [(True, True)]
    assert residues("j // 64 == (i // 64 * 7919) % 31337 % (i // 64)") == [(False, True)]
    assert residues("(j <= i) & ((j >= i - i % 64) | (j % 64 >= 60))") == [(True, True), (False, False)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("doc[b, i] == doc[b, j]", "nothing in `doc[b, i] == doc[b, j]` bounds j"),
        ("(j <= i) | ((i - j) % 4 == 0)", "`(i - j) % 4 == 0`"),
        ("(i >= 4) & ((i ^ j) < 7)", "nothing in"),
    ],
)
def test_what_cannot_be_bounded_says_why(text: str, reason: str) -> None:
    found = key_ranges(parse(text, None, KINDS))
    assert isinstance(found, Unbounded)
    assert reason in found.reason


def test_no_terms_and_too_many() -> None:
    assert key_ranges(constant(False)) == Bounded((), True)
    scattered = constant(False)
    for k in range(65):
        scattered = scattered | (i - j == 3 * k)
    assert isinstance(found := key_ranges(scattered), Unbounded) and "64 terms" in found.reason


def test_ranges_of_a_mask_are_found_once() -> None:
    mask = parse("(j <= i) & (i - j < 33)")
    assert key_ranges(mask) is key_ranges(parse("(j <= i) & (i - j < 33)"))
