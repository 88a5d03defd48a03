"""Rank keys sort by forced, then score, then lower id, and give back what went in."""

from __future__ import annotations

import struct

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsec.tile.arithmetic import rank, rank_id, rank_score
from sparsec.tile.language import EMPTY_KEY

scores = st.floats(width=32, allow_nan=False)
ids = st.integers(0, 2**31 - 2)


def key(score: float, index: int, forced: bool = False) -> int:
    """One key."""
    made = int(rank(torch.tensor(score), torch.tensor(index, dtype=torch.int32)))
    return made ^ EMPTY_KEY if forced else made


@given(st.lists(st.tuples(scores, ids, st.booleans()), min_size=1, max_size=20))
def test_keys_sort_as_their_parts_do(members: list[tuple[float, int, bool]]) -> None:
    by_key = sorted(members, key=lambda m: -key(*m))
    by_parts = sorted(members, key=lambda m: (not m[2], -(m[0] + 0.0), m[1]))
    assert [(m[2], m[0] + 0.0, m[1]) for m in by_key] == [(m[2], m[0] + 0.0, m[1]) for m in by_parts]


@given(scores, ids, st.booleans())
def test_keys_give_back_score_and_id(score: float, index: int, forced: bool) -> None:
    made = torch.tensor(key(score, index, forced))
    assert int(rank_id(made)) == index
    assert struct.pack("f", float(rank_score(made))) == struct.pack("f", score + 0.0)
    assert int(made) > EMPTY_KEY


def test_a_nan_of_either_sign_ranks_highest() -> None:
    plus, minus = (struct.unpack("f", struct.pack("I", bits))[0] for bits in (0x7FC00000, 0xFFC00001))
    assert key(plus, 3) == key(minus, 3) > key(float("inf"), 0)


def test_the_empty_key_is_below_all_and_has_no_id() -> None:
    assert int(rank_id(torch.tensor(EMPTY_KEY))) == -1
    assert key(float("-inf"), 2**31 - 2) > EMPTY_KEY
