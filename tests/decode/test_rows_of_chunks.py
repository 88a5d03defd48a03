"""Landmarks that come by chunks: rows that are not due are ignored, also where some inputs have more of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.oracle.error import check
from sparsec.oracle.truth import oracle

TWO = """
variant two(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV], r: [B, TQ, HKV, DR],
            l: [B, (TK + 3) // 4, HKV, DR], m: [B, (TK + 3) // 4, HKV, DR]) {
  memory = tokens(k, v) {chunk = 4}
  one = topk(score(r, l)) {k = 2, unit = chunk, size = 4, scope = kv_head, eligible = 4 * c + 4 <= i}
  other = topk(score(r, m)) {k = 1, unit = chunk, size = 4, scope = kv_head, eligible = 4 * c + 4 <= i}
  a = attend(q, memory, one) {scale = rsqrt(D)}
  b = attend(q, memory, other) {scale = rsqrt(D)}
  return a, b
}
"""
SIZES: dict[str, Any] = {"B": 2, "TQ": 21, "TK": 21, "H": 2, "HKV": 2, "D": 16, "DV": 16, "DR": 16}


@pytest.mark.parametrize("extra", [("",), ("l",), ("m",), ("l", "m")], ids="+".join)
def test_rows_that_are_not_due_are_ignored(extra: tuple[str, ...]) -> None:
    variant = sparsec.parse(TWO)
    x = sparsec.inputs(variant, dtype="float32", seed=3, **SIZES)
    made = sparsec.compile(variant, target="interpreter")
    cache, found = made.init_cache(2, 24), list[tuple[Tensor, ...]]()
    for a, b in ((0, 6), (6, 7), (7, 8), (8, 20), (20, 21)):
        step = {n: y[:, a:b] for n, y in x.items() if n not in "lm"}
        for name in "lm":
            due = x[name][:, a // 4 : b // 4]
            junk = torch.full_like(x[name][:, :1], 50.0)
            step[name] = torch.cat([due, junk], 1) if name in extra else due
        out = made.decode(cache, **step)
        assert isinstance(out, tuple)
        found.append(out)
    truth = oracle(variant, x, form="vector")
    assert isinstance(truth, tuple)
    for parts, true in zip(zip(*found, strict=True), truth, strict=True):
        verdict = check(torch.cat(parts, 1), true, "float32", "o")
        assert verdict, verdict.sentence
