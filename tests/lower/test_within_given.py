"""Chunks that are chosen within given lists of larger ones, of which some slots may not count."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.frontends.text import parse
from sparsec.ir.variant import Variant
from sparsec.oracle import check, oracle
from sparsec.runtime.compiled import Compiled
from sparsec.testing.whole.trained import wrong_on

HEAD = "q: [B,TQ,H,D], k: [B,TK,HKV,D], v: [B,TK,HKV,DV]"
SIZES: dict[str, Any] = {"B": 2, "T": 300, "H": 6, "HKV": 2, "D": 16, "DV": 24}
GIVEN = """pages = tokens(k, v) {chunk = 16}
  near = reduce(score(q, summary(pages) {size = 16, stride = 16})) {over = group, op = mean}
  above = given(ids) {size = 64}
  chosen = topk(near, within=above) {k = 3, size = 16, scope = kv_head, eligible = 16 * c <= i, fanout = 4}
  return attend(q, pages, chosen, mask(pages) {where = j <= i})"""


def result(made: Compiled, x: dict[str, Tensor]) -> Tensor:
    found = made(**x)
    assert isinstance(found, Tensor)
    return found


def truth(variant: Variant, x: dict[str, Tensor]) -> Tensor:
    found = oracle(variant, x)
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("target", ["interpreter", "tvm"])
def test_chunks_within_given_lists(target: str) -> None:
    """Which may have gaps."""
    variant = parse(f"variant levels({HEAD}, ids: [B,TQ,HKV,3] int32) {{\n  {GIVEN}\n}}")
    x = sparsec.inputs(variant, **SIZES)
    generator = torch.Generator().manual_seed(0)
    x["ids"] = torch.rand(2, 300, 2, 5, generator=generator).topk(3, -1).indices.int()
    x["ids"][torch.rand(2, 300, 2, 3, generator=generator) < 0.3] = -1
    assert check(result(sparsec.compile(variant, target=target), x), truth(variant, x), "float32")


@pytest.mark.parametrize("scores", ["near", "bias(near) {fn = score + 0.1 * j}"])
@pytest.mark.parametrize("target", ["interpreter", "tvm"])
def test_chunks_within_given_lists_of_which_some_slots_count(target: str, scores: str) -> None:
    """Units past the count are no parents, though the list names them."""
    body = GIVEN.replace("given(ids)", "given(ids, counts=n)").replace("topk(near", f"topk({scores}")
    body = body.replace("eligible = 16 * c <= i", "eligible = 16 * c + 16 <= i")
    variant = parse(f"variant levels({HEAD}, ids: [B,TQ,HKV,3] int32, n: [B,TQ,HKV] int32) {{\n  {body}\n}}")
    x = sparsec.inputs(variant, **SIZES)
    generator = torch.Generator().manual_seed(0)
    x["ids"] = torch.rand(2, 300, 2, 5, generator=generator).topk(3, -1).indices.int()
    x["n"] = torch.randint(0, 4, (2, 300, 2), generator=generator).int()
    made = sparsec.compile(variant, target=target)
    want = truth(variant, x)
    assert check(result(made, x), want, "float32")
    cache, parts = made.init_cache(batch=2, max_length=320), list[Tensor]()
    for a, b in itertools.pairwise((0, 190, 191, 192, 300)):
        part = made.decode(cache, **{name: t[:, a:b] for name, t in x.items()})
        assert isinstance(part, Tensor)
        parts.append(part)
    assert check(torch.cat(parts, 1), want, "float32")
    everything = truth(variant, {**x, "n": torch.full_like(x["n"], 3)})
    assert not check(everything.float(), want, "float32"), "the counts are seen"
    assert wrong_on(made, x, "float32") == []
