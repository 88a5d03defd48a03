"""Layers that nobody wrote: branches, selections, weights, merges and gates put together at random."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsec.frontends.text import parse
from sparsec.ir.variant import Variant
from sparsec.ir.variant import variant as declare
from sparsec.testing.inputs.variants import NAMES, small

Gradients = Callable[..., dict[str, Tensor | None]]
Draw = st.DrawFn

INPUTS = {
    "q": "[B, TQ, H, D]",
    "k": "[B, TK, HKV, D]",
    "v": "[B, TK, HKV, DV]",
    "ks": "[3, HKV, D]",
    "vs": "[3, HKV, DV]",
    "sink": "[H]",
    "slopes": "[H] float32",
    "r": "[B, TQ, HKV, D]",
    "l": "[B, (TK + 2) // 3, HKV, D]",
    "g0": "[B, TQ, H]",
    "g1": "[B, TQ, H]",
}
MEMORY = "m = tokens(k, v) {chunk = 3}\n  s = summary(m) {size = 3, stride = 3, fields = kv}\n"
MASKS = ("j <= i", "(j <= i) & (i - j < 4)", "(j <= i) & ((i - j) % 2 == 0)", "j < 2")
GATES = ("x0", "sigmoid(x0)", "tanh(x0) * x0")


@st.composite
def selections(draw: Draw) -> str:
    """A list and its weights, named ``c`` and ``w``; the statements that make them."""
    scores = draw(st.sampled_from(["score(r, l)", "reduce(score(q, s)) {over = group, op = OP}", "score(r, s)"]))
    scores = scores.replace("OP", draw(st.sampled_from(["sum", "mean", "max"])))
    if draw(st.booleans()):
        scores = f"bias({scores}) {{fn = score * 0.5 + tanh(score)}}"
    gradient = draw(st.sampled_from(["none", "through_weights"]))
    eligible = draw(st.sampled_from(["3 * c <= i", "3 * c + 3 <= i", "True"]))
    rule = f"k = 2, size = 3, eligible = {eligible}, order = newest, selector_gradient = {gradient}"
    fn = draw(st.sampled_from(["softmax", "softmax_sink", "stick", "sigmoid", "raw"]))
    return f"  a = {scores}\n  c = topk(a) {{{rule}}}\n  w = weights(a, c) {{fn = {fn}}}\n"


@st.composite
def joint_branches(draw: Draw) -> str:
    """An attend that has a log-sum-exp."""
    memory = draw(st.sampled_from(["m", "s", "slots(ks, vs)", "m, c"]))
    mask = f", mask(m) {{where = {draw(st.sampled_from(MASKS))}}}" if memory.startswith("m") else ""
    named, attrs = draw(
        st.sampled_from([
            ("", ""),
            ("", "softcap = 2.0"),
            ("", "sink = zero"),
            (", sink=sink", "sink = given"),
            (", slopes=slopes", "bias = score - slopes[h] * (i - j)"),
            (", slopes=slopes, sink=sink", "bias = score * slopes[h], softcap = 3.0, sink = given"),
        ])
    )  # fmt: skip
    return f"attend(q, {memory}{mask}{named}) {{{attrs}}}" if attrs else f"attend(q, {memory}{mask})"


@st.composite
def branches(draw: Draw, depth: int = 1) -> str:
    """An output: an attend, or a merge of outputs."""
    kind = draw(st.sampled_from(["joint", "chunks", *(["lse", "sum", "gated", "convex"] if depth else [])]))
    if kind == "joint":
        return draw(joint_branches())
    if kind == "chunks":
        return "attend(q, m, c, weights=w) {per = chunk}"
    if kind == "lse":
        return f"merge({draw(joint_branches())}, {draw(joint_branches())}) {{fn = lse}}"
    parts = [draw(branches(depth - 1)), draw(branches(depth - 1))]
    gates = {"gated": ["g0", "g1"], "convex": ["g0"]}.get(kind, [])
    gates = [f"map({gate}) {{fn = {draw(st.sampled_from(GATES))}}}" for gate in gates]
    return f"merge({', '.join([*parts, *gates])}) {{fn = {kind}}}"


@st.composite
def layers(draw: Draw) -> Variant:
    """A layer of one to three outputs with the inputs that it reads."""
    chosen, first, rest = draw(selections()), draw(branches()), draw(joint_branches())
    results = ["o", *draw(st.sampled_from([[], ["lse(p)"], ["p", "lse(p)"]]))]
    inputs = ", ".join(f"{name}: {shape}" for name, shape in INPUTS.items())
    body = f"  {MEMORY}{chosen}  o = {first}\n  p = {rest}\n  return {', '.join([*results, *INPUTS])}\n"
    everything = parse(f"variant x({inputs}) {{\n{body}}}")
    return declare("x", everything.outputs[: len(results)])


@settings(max_examples=60)
@given(variant=layers(), seed=st.integers(0, 99), data=st.data())
def test_random_layers(variant: Variant, seed: int, data: st.DataObject, gradients: Gradients) -> None:
    wrt = data.draw(st.lists(st.sampled_from(sorted(variant.inputs)), unique=True))
    note(variant.text())
    gradients(variant, wrt or None, seed=seed, B=1, TQ=4, TK=8, H=2, HKV=1, D=2, DV=2)


@pytest.mark.parametrize("name", ["full-softcap-sink", "msa-window", "hsa-window", "nsa", "joined", "mixed"])
@settings(max_examples=5)
@given(data=st.data())
def test_gradients_of_some_inputs(name: str, data: st.DataObject, gradients: Gradients) -> None:
    assert name in NAMES
    variant = small(name)
    wrt = data.draw(st.lists(st.sampled_from(sorted(variant.inputs)), unique=True, min_size=1))
    found = gradients(variant, wrt, B=1, TQ=5, TK=35, H=2, HKV=1, D=2, DV=2)
    assert list(found) == wrt
