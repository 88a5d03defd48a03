"""The passes keep the meaning: the oracle gives the same before and after, on presets and on what passes rewrite."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsec.frontends.preset import preset
from sparsec.frontends.text import parse
from sparsec.ir.dims import value
from sparsec.ir.variant import Variant
from sparsec.oracle import oracle
from sparsec.passes.pipeline import PIPELINE, run

PRESETS: list[tuple[str, dict[str, object]]] = [
    ("full", {"sink": "zero", "softcap": 5.0}),
    ("streaming", {"window": 6, "sinks": 2}),
    ("msa", {"pattern": "window+strided", "window": 4, "stride": 3, "slots": 5}),
    ("msa", {"pattern": "dilated", "window": 3, "slots": 4, "slot_softmax": "gated"}),
    ("longformer", {"window": 6, "global_tokens": 2}),
    ("bigbird", {"block": 4}),
    ("hsa", {"chunk": 4, "k": 2}),
    ("hsa", {"chunk": 4, "k": 3, "weights": "softmax", "landmark": "mean", "retrieval": "group_mean", "window": 5}),
    ("nsa", {"block": 4, "k": 3, "size": 4, "stride": 2, "window": 5}),
    ("moba", {"block": 4, "k": 2}),
    ("infllm2", {"block": 4, "k": 4, "size": 4, "stride": 2, "window": 4}),
]
INPUTS = "q: [B,TQ,H,D], k: [B,TK,HKV,D], v: [B,TK,HKV,DV]"
DIMS = {"B": 1, "H": 4, "HKV": 2, "D": 5, "DV": 3, "DR": 4}


def draw(variant: Variant, queries: int, keys: int, seed: int) -> dict[str, Tensor]:
    """Random inputs of a length."""
    dims, generator = {**DIMS, "TQ": queries, "TK": keys}, torch.Generator().manual_seed(seed)
    shapes = {name: [value(d, dims) for d in spec.shape] for name, spec in variant.inputs.items()}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def assert_same(variant: Variant, queries: int, keys: int, seed: int = 0) -> None:
    """The outputs before and after the passes agree to rounding of fp64."""
    inputs = draw(variant, queries, keys, seed)
    before = oracle(variant, inputs, form="vector")
    after = oracle(run(variant, PIPELINE), inputs, form="vector")
    torch.testing.assert_close(after, before, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("name", "knobs"), PRESETS, ids=[f"{name}-{n}" for n, (name, _) in enumerate(PRESETS)])
@settings(max_examples=6)
@given(keys=st.integers(1, 23), short=st.integers(0, 3), seed=st.integers(0, 99))
def test_presets_keep_their_meaning(name: str, knobs: dict[str, object], keys: int, short: int, seed: int) -> None:
    variant = preset(name, **knobs)
    assert_same(variant, max(keys - short, 1), keys, seed)


@pytest.mark.parametrize(("name", "knobs"), PRESETS, ids=[f"{name}-{n}" for n, (name, _) in enumerate(PRESETS)])
def test_passes_settle(name: str, knobs: dict[str, object]) -> None:
    once = run(preset(name, **knobs), PIPELINE)
    again = run(once, PIPELINE)
    assert again.outputs == once.outputs


EQUIVALENCES = {
    "disjoint parts": """
        near = mask(m) {where = (j <= i) & (i - j < 4)}
        far = mask(m) {where = (i - j >= 4) & (j < 9)}
        o = merge(attend(q, m, near), attend(q, m, far)) {fn = lse}""",
    "overlapping parts stay two": """
        near = mask(m) {where = (j <= i) & (i - j < 4)}
        start = mask(m) {where = (j <= i) & (j < 3)}
        o = merge(attend(q, m, near), attend(q, m, start)) {fn = lse}""",
    "nested merges": """
        a = attend(q, m, mask(m) {where = j < 2})
        b = attend(q, m, mask(m) {where = (j > 2) & (j <= i)}) {softcap = 2.0}
        o = merge(merge(a, b) {fn = lse}, attend(q, m)) {fn = lse}""",
    "several masks": """
        o = attend(q, m, mask(m) {where = j <= i}, mask(m) {where = i - j < 5}, mask(m) {where = True})""",
    "window of one token": """
        s = summary(m) {size = 1, stride = 1}
        t = topk(score(q, s)) {k = 3, unit = token, scope = head, eligible = c <= i, forced = (c <= i) & (c < 1)}
        o = attend(q, m, t)""",
    "forced outside the eligible": """
        t = topk(score(q, m)) {k = 3, unit = token, scope = head, eligible = c <= i, forced = c > i, order = newest}
        o = attend(q, m, t)""",
}


@pytest.mark.parametrize("body", EQUIVALENCES.values(), ids=EQUIVALENCES.keys())
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (12, 12), (3, 11)])
def test_rewrites_keep_the_meaning(body: str, queries: int, keys: int) -> None:
    assert_same(parse(f"variant x({INPUTS}) {{\n m = tokens(k, v)\n{body}\n return o\n}}"), queries, keys)


@pytest.mark.parametrize("queries", [1, 8])
def test_choosing_every_block_is_full_attention(queries: int) -> None:
    text = """variant x(q: [B,TQ,H,D], k: [B,8,HKV,D], v: [B,8,HKV,DV]) {
      m = tokens(k, v) {chunk = 2}
      t = topk(score(q, summary(m) {size = 2, stride = 2})) {k = 4, size = 2, scope = head, eligible = 2 * c <= i}
      o = attend(q, m, t, mask(m) {where = j <= i})
      return o
    }"""
    variant = parse(text)
    assert "topk" not in run(variant, PIPELINE).text()
    assert_same(variant, queries, 8)
