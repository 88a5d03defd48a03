"""Ranges of offsets: exact at the boundary of int32, and divisibility of rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsec
from sparsec.frontends.preset import preset
from sparsec.passes.ranges import extent, extents
from sparsec.scalar.expr import constant, var

SHAPE = (var("B"), var("TQ"), var("H"), var("D"))


@pytest.mark.parametrize(("tokens", "fits"), [(2**20, True), (2**20 + 1, False)])
def test_the_boundary_is_exact(tokens: int, fits: bool) -> None:
    found = extent("q", SHAPE, {"B": 1, "TQ": tokens, "H": 16, "D": 128})
    assert (found.fits, found.longest, found.aligned) == (fits, 2**20, 128)
    assert ("int32," in str(found)) == fits


@given(b=st.integers(1, 9), h=st.integers(1, 40), d=st.sampled_from([32, 48, 80, 96, 128]), t=st.integers(1, 10**6))
def test_offsets_fit_iff_the_last_one_does(b: int, h: int, d: int, t: int) -> None:
    found = extent("q", SHAPE, {"B": b, "TQ": t, "H": h, "D": d})
    assert found.fits == (b * t * h * d <= 2**31) and found.count == b * t * h * d
    assert h * d % found.aligned == 0 and (found.aligned == 128 or h * d % (2 * found.aligned))
    assert found.longest is not None and b * found.longest * h * d <= 2**31 < b * (found.longest + 1) * h * d


def test_every_input_has_an_extent() -> None:
    variant = preset("hsa", chunk=64)
    dims = {"B": 2, "TQ": 100, "TK": 100, "H": 4, "HKV": 2, "D": 64, "DV": 64, "DR": 32}
    found = {e.name: e.count for e in extents(variant, dims)}
    assert found["l"] == 2 * 2 * 2 * 32 and set(found) == set(variant.inputs)


def test_a_tensor_without_a_length_has_no_longest() -> None:
    assert extent("s", (constant(8), var("H"), var("D")), {"H": 4, "D": 16}).longest is None


def test_lengths_of_any_name_are_ranged() -> None:
    text = "variant v(q: [B,L,H,D], k: [B,S,HKV,D]) { return attend(q, tokens(k, k)) }"
    found = extents(sparsec.parse(text), {"B": 1, "L": 8, "S": 8, "H": 2, "HKV": 1, "D": 16})
    assert [e.length for e in found] == ["L", "S"] and found[0].longest == 2**31 // 32
