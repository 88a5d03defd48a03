"""Random inputs fit the declaration, are the same for a seed, and given indices are valid."""

from __future__ import annotations

import pytest
import torch

import sparsec
from sparsec.ir.error import InputError

GIVEN = """variant chosen(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV], ids: [B, TQ, HKV, 6] int32,
                          n: [B, TQ, HKV] int32) {
  list = given(ids, counts=n) {unit = chunk, size = 16, order = ORDER}
  return attend(q, tokens(k, v) {chunk = 16}, list)
}"""


def test_dims_dtypes_and_seeds() -> None:
    variant = sparsec.preset("nsa", selection="given", branches="slc+swa")
    once = sparsec.inputs(variant, B=2, TQ=5, TK=70, D=8, DV=12, dtype="bfloat16", seed=3)
    again = sparsec.inputs(variant, B=2, TQ=5, TK=70, D=8, DV=12, dtype="bfloat16", seed=3)
    other = sparsec.inputs(variant, B=2, TQ=5, TK=70, D=8, DV=12, dtype="bfloat16", seed=4)
    assert {name: tuple(x.shape) for name, x in once.items()} == {
        "q": (2, 5, 4, 8),
        "k": (2, 70, 2, 8),
        "v": (2, 70, 2, 12),
        "indices": (2, 5, 2, 16),
        "g_slc": (2, 5, 4),
        "g_swa": (2, 5, 4),
    }
    assert {x.dtype for name, x in once.items() if name != "indices"} == {torch.bfloat16}
    assert once["indices"].dtype == torch.int32
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not torch.equal(once["q"], other["q"])


@pytest.mark.parametrize("order", ["score", "newest", "oldest"])
@pytest.mark.parametrize(("queries", "tokens"), [(100, 100), (7, 100), (1, 1), (100, 37)])
def test_given_indices_are_distinct_causal_and_own(order: str, queries: int, tokens: int) -> None:
    drawn = sparsec.inputs(sparsec.parse(GIVEN.replace("ORDER", order)), TQ=queries, TK=tokens)
    ids, counts = drawn["ids"], drawn["n"]
    assert int(counts.min()) >= 0
    assert int(counts.max()) <= 6
    for row in range(queries):
        own = (row + tokens - queries) // 16
        for listed in ids[0, row].tolist():
            there = [c for c in listed if c >= 0]
            assert len(set(there)) == len(there) == min(6, max(own + 1, 0))
            assert listed[len(there) :] == [-1] * (6 - len(there))
            assert all(c <= own for c in there) and (own in there or own < 0)
            if order != "score":
                assert there == sorted(there, reverse=order == "newest")


def test_decays_and_rates_are_in_range() -> None:
    text = """variant scan(q: [B, T, H, D], k: [B, T, H, D], v: [B, T, H, DV], g: [B, T, H] float32, beta: [B, T, H]) {
      written = write(state() {heads = H}, k, v, beta=beta, decay=g) {rule = delta, decay_kind = scalar}
      return recall(q, written)
    }"""
    drawn = sparsec.inputs(sparsec.parse(text), T=50)
    assert drawn["g"].dtype == torch.float32
    assert float(drawn["g"].max()) <= 0
    assert float(drawn["beta"].min()) >= 0
    assert float(drawn["beta"].max()) <= 1


def test_wrong_dims() -> None:
    with pytest.raises(InputError, match=r"full has no such dim. Fix: did you mean `HKV`"):
        sparsec.inputs(sparsec.preset("full"), HK=2)
    with pytest.raises(InputError, match="whole number"):
        sparsec.inputs(sparsec.preset("full"), B=-1)
