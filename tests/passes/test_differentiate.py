"""Derived gradients are those of autograd through the oracle of the variant itself, to rounding of fp64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor

from sparsec.frontends.preset import preset
from sparsec.frontends.text import parse
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.variant import Variant
from sparsec.oracle.form import FormName
from sparsec.passes.differentiate import differentiate
from sparsec.passes.pipeline import training
from sparsec.passes.vjp_rules import FLOWS, Flow
from sparsec.testing.inputs.variants import NAMES, small

Gradients = Callable[..., dict[str, Tensor | None]]


QKV = "q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV]"
MARKS = "m = tokens(k, v) {chunk = 4}; s = summary(m) {size = 4, stride = 4}; w0 = score(q, s);"
NARROW: list[tuple[str, dict[str, object]]] = [
    ("full", {"sink": "zero", "softcap": 2.0}),
    ("streaming", {"window": 3, "sinks": 2}),
    ("msa", {"pattern": "window+strided", "window": 3, "stride": 3, "slots": 3}),
    ("msa", {"pattern": "dilated", "window": 3, "slots": 2, "slot_softmax": "gated"}),
    ("longformer", {"window": 4, "global_tokens": 2}),
    ("bigbird", {"block": 2, "random_blocks": 1}),
    ("hsa", {"chunk": 2, "k": 2}),
    ("hsa", {"chunk": 2, "k": 2, "weights": "softmax", "landmark": "mean", "retrieval": "group_mean", "sink": "zero"}),
    ("hsa", {"chunk": 2, "k": 2, "window": 3}),
    ("nsa", {"block": 4, "k": 3, "size": 4, "stride": 2, "window": 3}),
    ("moba", {"block": 2, "k": 2}),
    ("infllm2", {"block": 4, "k": 3, "size": 4, "stride": 2, "window": 4}),
]
# Further inputs, then the body; what no preset has.
DECLARED: dict[str, tuple[str, str]] = {
    "captures of a bias": (
        ", gain: [H] float32, slopes: [H, TK], far: [B, TK] int32",
        """m = tokens(k, v)
        past = mask(m, far=far) {where = (j <= i) & (far[b, j] < 3)}
        near = attend(q, m, past, gain=gain, slopes=slopes) {bias = score * gain[h] - abs(slopes[h, j]) * (i - j)}
        all = attend(q, m, gain=gain) {bias = tanh(score + gain[h]), softcap = 1.5}
        return merge(near, all) {fn = sum}""",
    ),
    "biased scores": (
        ", table: [H, 3]",
        MARKS
        + """w1 = reduce(bias(w0, table=table) {fn = score + table[h, j % 3] * table[h, 0]}) {over = group, op = max}
        c = topk(w1) {k = 2, size = 4, eligible = 4 * c <= i, selector_gradient = through_weights}
        return attend(q, m, c, weights=weights(w1, c) {fn = sigmoid}) {per = chunk}""",
    ),
    "a softmax before the cut": (
        "",
        MARKS
        + """w1 = reduce(w0) {over = group, op = mean, pre = softmax, visible = 4 * c <= i}
        c = topk(w1) {k = 2, size = 4, eligible = 4 * c <= i, selector_gradient = through_weights}
        return attend(q, m, c, weights=weights(w1, c) {renormalise = false}) {per = chunk}""",
    ),
    "pooled blocks": (
        "",
        """m = tokens(k, v) {chunk = 4}
        s = score(q, summary(m) {size = 4, stride = 2}) {fn = cosine}
        p = reduce(reduce(s) {over = group}) {over = blocks, op = max, kernel = 3, stride = 2, padding = 1}
        c = topk(p) {k = 2, size = 4, selector_gradient = through_weights}
        return attend(q, m, c, weights=weights(p, c) {fn = softmax_sink}) {per = chunk}, p""",
    ),
    "overlapping blocks": (
        "",
        """m = tokens(k, v) {chunk = 4}
        s = reduce(score(q, summary(m) {fn = max, size = 4, stride = 2}) {fn = router}) {over = group}
        p = reduce(s) {over = overlap, size = 4, stride = 2, block = 4}
        c = topk(p) {k = 2, size = 4, order = newest, selector_gradient = through_weights}
        return attend(q, m, c, weights=weights(p, c) {fn = stick}) {per = chunk}""",
    ),
    "indexer": (
        ", qi: [B, TQ, HI, DI], ki: [B, (TK + 3) // 4, 1, DI], wi: [B, TQ, HI]",
        """m = tokens(k, v) {chunk = 4}
        s = score(qi, ki, head_weights=wi) {fn = indexer}
        c = topk(s) {k = 2, size = 4, scope = token, selector_gradient = through_weights}
        return attend(q, m, c, weights=weights(s, c) {fn = raw}) {per = chunk}""",
    ),
    "one list for all queries": (
        "",
        MARKS
        + """w1 = reduce(reduce(w0) {over = heads, op = mean}) {over = queries, op = max}
        c = topk(w1) {k = 2, size = 4, scope = query_set, selector_gradient = through_weights}
        return attend(q, m, c), weights(w1, c)""",
    ),
    "given summaries": (
        ", g: [B, (TK + 3) // 4, HKV, D], x: [1, (TK + 3) // 4, HKV, D]",
        """m = tokens(k, v)
        s = summary(m, g) {fn = given, size = 4, stride = 4, fields = kv}
        t = summary(m, map(x) {row = l2norm}) {fn = given, size = 4, stride = 4, fields = kv}
        return merge(attend(q, s), attend(q, t), attend(q, summary(s) {fn = max, size = 2, stride = 2, fields = kv})) {
          fn = lse}""",
    ),
    "summaries of slots": (
        ", ks: [4, HKV, D], vs: [4, HKV, DV]",
        """m = slots(ks, vs)
        return merge(attend(q, m), attend(q, summary(m) {size = 2, stride = 2, fields = kv}),
                     attend(q, tokens(k, v))) {fn = lse}""",
    ),
    "weighted by a row": (
        ", g: [B, TQ, H, 2]",
        """m = tokens(k, v)
        a = attend(q, m, mask(m) {where = j <= i})
        return merge(a, attend(q, m), map(g) {row = softmax}) {fn = weighted}""",
    ),
    "convex, functions of several": (
        ", g: [B, TQ, H], h: [H], n: [B, TQ, H] int32",
        """m = tokens(map(k) {row = l2norm, fn = x0 * 2.0}, v)
        gate = map(g, h, n) {fn = sigmoid(x0 * x1 + x1)}
        return merge(attend(q, m), attend(q, m) {softcap = 1.0}, gate) {fn = convex}""",
    ),
    "one thing in two places": (
        "",
        """m = tokens(k, v)
        o = attend(q, m)
        twice = map(o, o) {fn = x0 * x1 * x1}
        return merge(twice, twice, o) {fn = sum}, attend(q, tokens(q, q)), score(q, q)""",
    ),
    "only log-sum-exps": (
        "",
        """m = tokens(k, v)
        a = attend(q, m, mask(m) {where = j <= i}) {sink = zero}
        return lse(a), lse(merge(a, attend(q, m)) {fn = lse})""",
    ),
    "results of one another": (
        ", g: [B, TQ, H]",
        """m = tokens(k, v)
        a = attend(q, m)
        l = lse(a)
        return map(a) {fn = tanh(x0)}, l, merge(a, map(l, g) {fn = x0 * x1}) {fn = gated}, q""",
    ),
    "many in one sum": (
        "",
        "m = tokens(k, v); return " + ", ".join(f"attend(q, m, mask(m) {{where = j <= i + {n}}})" for n in range(17)),
    ),
}


def declared(name: str) -> Variant:
    """A variant of ``DECLARED``."""
    further, body = DECLARED[name]
    return parse(f"variant x({QKV}{further}) {{\n{body.replace(';', chr(10))}\n}}")


@pytest.mark.parametrize("name", NAMES)
def test_every_small_variant(name: str, gradients: Gradients) -> None:
    variant = small(name)
    found = gradients(variant, B=1, TQ=11, TK=37, H=2, HKV=1)
    assert any(g is not None and bool((g != 0).any()) for g in found.values())


@pytest.mark.parametrize("form", ["loop", "vector"])
@pytest.mark.parametrize(("name", "knobs"), NARROW, ids=[f"{name}-{n}" for n, (name, _) in enumerate(NARROW)])
def test_every_design_in_both_forms(name: str, knobs: dict[str, object], form: FormName, gradients: Gradients) -> None:
    variant = preset(name, **knobs)
    found = gradients(variant, form=form, B=1, H=2, HKV=1, D=2, DV=2)
    assert all(g is not None and bool((g != 0).any()) for g in found.values())


@pytest.mark.parametrize("form", ["loop", "vector"])
@pytest.mark.parametrize("name", DECLARED)
def test_what_no_preset_has(name: str, form: FormName, gradients: Gradients) -> None:
    gradients(declared(name), form=form, B=1 if form == "loop" else 2)


@pytest.mark.parametrize("text", [small(name).text() for name in NAMES] + [declared(name).text() for name in DECLARED])
def test_the_text_of_a_joint_variant_is_read_back(text: str) -> None:
    joint = training(parse(text)).variant
    again = parse(joint.text())
    assert again == joint
    assert again.digest == joint.digest


def test_a_declaration_is_differentiated_before_the_passes_too(gradients: Gradients) -> None:
    text = f"""variant x({QKV}) {{
      m = tokens(k, v)
      near = attend(q, m, mask(m) {{where = j <= i}}, mask(m) {{where = i - j < 4}})
      o = merge(merge(near, attend(q, m)) {{fn = lse}}, merge(attend(q, m) {{sink = zero}}) {{fn = lse}}) {{fn = lse}}
      return o, lse(o)
    }}"""
    gradients(parse(text), joint=differentiate(parse(text)))


def test_a_joint_graph(golden: Callable[[str], None]) -> None:
    knobs: dict[str, object] = {"chunk": 4, "k": 2, "landmark": "mean", "retrieval": "group_mean", "window": 5}
    golden(training(preset("hsa", **knobs)).variant.text())


def test_a_joint_graph_of_one_softmax(golden: Callable[[str], None]) -> None:
    golden(training(small("joined"), ["q", "v"]).variant.text())


def without_lse(node: Node) -> list[Flow]:
    """A merge whose weights have no gradient."""
    return [flow for flow in FLOWS[Op.ATTEND](node) if flow.part != "lse"]


MUTANTS: dict[str, tuple[Op, Callable[[Node], list[Flow]], str]] = {
    "weights of a merge are constant": (Op.MERGE, without_lse, "joined"),
    "a returned log-sum-exp is forgotten": (Op.LSE, lambda node: [], "open"),
    "a summary passes nothing on": (Op.SUMMARY, lambda node: [], "nsa"),
    "keys and values change places": (
        Op.TOKENS, lambda node: [Flow(node.src[0], "value", ("v",)), Flow(node.src[1], "value", ("k",))], "full",
    ),
    "weights let nothing through": (Op.WEIGHTS, lambda node: [], "hsa"),
    "a gate has no gradient": (
        Op.MERGE, lambda node: [f for f in FLOWS[Op.ATTEND](node) if len(f.source.shape) == 4], "nsa",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MUTANTS)
def test_a_wrong_rule_is_noticed(case: str, gradients: Gradients, monkeypatch: pytest.MonkeyPatch) -> None:
    op, rule, name = MUTANTS[case]
    variant = small(name)
    sizes = {"B": 1, "TQ": 11, "TK": 37, "H": 2, "HKV": 1, "D": 3, "DV": 3}
    gradients(variant, **sizes)
    monkeypatch.setitem(FLOWS, op, rule)
    with pytest.raises(AssertionError):
        gradients(variant, **sizes)
