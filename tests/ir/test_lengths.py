"""The lengths of a variant are found whatever they are called, and are those that a call counts positions along."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.ir.lengths import lengths
from sparsec.oracle import oracle
from sparsec.plan.specs import BlockList
from sparsec.runtime.compiled import compile
from sparsec.testing.whole.chain import links

BODY = """{{
  memory = tokens(k, v)
  past = mask(memory) {{where = (j <= i) & (i - j < 9)}}
  return attend(q, memory, past)
}}"""
NAMES = [("TQ", "TK"), ("T", "T"), ("L", "S"), ("L", "TK"), ("TQ", "T")]


def declared(queries: str, keys: str) -> sparsec.Variant:
    """A window with lengths of these names."""
    inputs = f"q: [B,{queries},H,D], k: [B,{keys},HKV,D], v: [B,{keys},HKV,D]"
    return sparsec.parse(f"variant window({inputs}) {BODY.format()}")


def drawn(variant: sparsec.Variant, queries: str, keys: str) -> dict[str, Tensor]:
    """Inputs with 11 queries and 23 keys, where the names allow both."""
    sizes: dict[str, Any] = {queries: 11, keys: 23}
    return sparsec.inputs(variant, **sizes, H=2, HKV=1, D=16)


@pytest.mark.parametrize("names", NAMES)
def test_positions_count_along_them(names: tuple[str, str]) -> None:
    variant = declared(*names)
    given = drawn(variant, *names)
    truth = oracle(variant, given, q_offset=given["k"].shape[1] - given["q"].shape[1])
    whole, shown = oracle(variant, given, return_all=True)
    found = compile(variant, "interpreter")(None, **given)
    assert isinstance(truth, Tensor) and isinstance(whole, Tensor) and isinstance(found, Tensor)
    assert torch.equal(whole, truth)
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-6)
    visible = shown["past"]
    assert isinstance(visible, Tensor) and visible.shape[1] == given["q"].shape[1]


def test_the_customary_name_decides_between_two_memories() -> None:
    text = """variant two(k2: [B,M,HKV,D], q: [B,TQ,H,D], k: [B,{keys},HKV,D]) {{
      return merge(attend(q, tokens(k2, k2)), attend(q, tokens(k, k))) {{fn = lse}}
    }}"""
    assert str(lengths(sparsec.parse(text.format(keys="TK"))).keys) == "TK"
    assert str(lengths(sparsec.parse(text.format(keys="S"))).keys) == "M", "the first input's"


def test_without_tokens_queries_start_at_the_first_position() -> None:
    variant = sparsec.parse("variant slots_only(q: [B,TQ,H,D], k: [8,HKV,D]) { return attend(q, slots(k, k)) }")
    found = lengths(variant)
    assert found.keys is None and found.offset({"TQ": 5}) == 0 and found.longest({"TQ": 5}) == 5


@pytest.mark.parametrize("names", NAMES[2:3])
def test_other_names_are_tuned_like_any(names: tuple[str, str]) -> None:
    variant = declared(*names)
    compiled = compile(variant, "cpu")
    given = sparsec.inputs(variant, L=300, S=300, H=1, HKV=1, D=16)
    report = compiled.tune(given, trials=1, workers=1)
    assert [len(kernel.trials) for kernel in report.kernels] == [1]
    assert lengths(variant).longest(compiled.bind(given)[0]) == 300


def test_a_new_length_needs_no_new_kernel() -> None:
    variant = sparsec.parse("""variant packed(q: [B,L,H,D], k: [B,S,HKV,D], document: [B,S] int32) {
      m = tokens(k, k)
      return attend(q, m, mask(m, document=document) {where = document[b, j] == 1})
    }""")
    compiled = compile(variant, "interpreter")
    builds = []
    for tokens in (9, 13):
        compiled(None, **sparsec.inputs(variant, T=tokens, H=1, HKV=1, D=16))
        builds.append(compiled.builds)
    assert builds[0] == builds[1]


def test_the_chain_of_a_block_list() -> None:
    variant = sparsec.parse("""variant strided(q: [B,L,H,D], k: [B,S,HKV,D]) {
      m = tokens(k, k)
      return attend(q, m, mask(m) {where = (j <= i) & ((i - j) % 37 == 0)})
    }""")
    compiled = compile(variant, "interpreter")
    inputs = sparsec.inputs(variant, T=75, H=1, HKV=1, D=16)
    assert any(isinstance(k.spec, BlockList) for k in compiled.plan(*compiled.bind(inputs)).kernels)
    assert all(link.ok for link in links(compiled, inputs))
