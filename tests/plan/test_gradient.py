"""Joint graphs as plans: which kernels compute the gradients of each preset, how precisely, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest

import sparsec
from sparsec.passes.differentiate import differentiate
from sparsec.passes.pipeline import run
from sparsec.plan.build import build_plan
from sparsec.plan.grad_specs import GatheredGradQ, Total
from sparsec.plan.maps.map_specs import Map
from sparsec.plan.plan import Plan, PlanError
from sparsec.plan.sizes import static_names
from sparsec.plan.states.mixture_specs import MixtureGrad

HEADS = {"H": 4, "HKV": 2}


def joint(name: str, knobs: Mapping[str, object] | None = None, wrt: tuple[str, ...] | None = None) -> Plan:
    """The plan of a preset's outputs and gradients in bf16."""
    made = differentiate(run(sparsec.preset(name, **(knobs or {}))), wrt)
    static = {n: HEADS.get(n, 32) for n in static_names(made.variant.parameters)}
    return build_plan(name, made.variant.outputs, made.variant.names, static, "bfloat16")


def backward(plan: Plan) -> Counter[str]:
    """How many backward kernels of each kind."""
    names = [type(k.spec).__name__ for k in plan.kernels]
    return Counter(n for n in names if "Grad" in n or n in ("RowDot", "Total"))


TILED = {"TiledGradQ": 1, "TiledGradKV": 1}
GATHERED = {"GatheredGradQ": 1, "GatheredGradKV": 1}
NSA = {"CombineGrad": 1, "TiledGradQ": 2, "TiledGradKV": 2, "GatheredGradQ": 1, "GatheredGradKV": 1}


@pytest.mark.parametrize(
    ("name", "knobs", "kernels"),
    [
        ("full", {}, TILED),
        ("streaming", {}, TILED),
        ("msa", {"slots": 8}, TILED | {"TiledGradKV": 2}),
        ("longformer", {}, TILED),
        ("bigbird", {}, TILED),
        ("moba", {}, GATHERED),
        ("infllm2", {}, GATHERED),
        ("nsa", {}, NSA | {"SummariseGrad": 2, "Total": 2}),
        ("hsa", {}, {"GatheredGradQ": 1, "GatheredGradKV": 1, "SelectorGradQ": 1, "SelectorGradKeys": 1}),
    ],
)
def test_every_preset_has_backward_kernels(name: str, knobs: dict[str, object], kernels: dict[str, int]) -> None:
    assert backward(joint(name, knobs)) == Counter(kernels)


def test_the_last_term_of_a_sum_is_added_where_it_is_made() -> None:
    plan = joint("nsa")
    (last,) = [k for k in plan.kernels if isinstance(k.spec, GatheredGradQ)]
    assert isinstance(last.spec, GatheredGradQ) and len(last.spec.terms) == 2 and last.spec.grad_q in plan.outputs
    before = plan.kernels[: plan.kernels.index(last)]
    assert all(any(term in k.writes for k in before) for term in last.spec.terms)
    assert {b.name for b in plan.buffers} == {n for k in plan.kernels for n in (*k.reads, *k.writes)}


def test_gradients_of_mixtures_and_of_squared_lengths_take_the_other_terms() -> None:
    """Of levels of states no sum over rows has a kernel of its own."""
    plan = joint("rsa", {"levels": 3, "parts": 1, "branching": 1, "raw": True})
    assert not [k for k in plan.kernels if isinstance(k.spec, Total)]
    (mixed,) = [k for k in plan.kernels if isinstance(k.spec, MixtureGrad)]
    assert isinstance(mixed.spec, MixtureGrad) and len(mixed.spec.terms) == 3
    squared = next(k for k in plan.kernels if isinstance(k.spec, Map) and k.spec.out == plan.outputs[2])
    assert len(squared.reads) == 8, "k, the gradient of |k|², three gradients of writes and three of masses"
    assert isinstance(squared.spec, Map)
    assert {mixed.spec.grad_q, (squared.spec.out, "bfloat16")} == {(n, "bfloat16") for n in plan.outputs[1:3]}
    written = [n for k in plan.kernels for n in k.writes]
    assert {b.name for b in plan.buffers} == {n for k in plan.kernels for n in k.reads} | {*written}


def test_terms_of_banks_are_rounded_where_nothing_but_banks_makes_them() -> None:
    """Queries' and keys' gradients of a bank go into a sum in the dtype of the inputs, beside attention in fp32."""
    plan = joint("rsa", {"levels": 3, "parts": 1, "branching": 1, "raw": True})
    (mixed,) = [k.spec for k in plan.kernels if isinstance(k.spec, MixtureGrad)]
    assert [dtype for _, dtype in mixed.terms] == ["bfloat16"] * 3
    squared = next(k for k in plan.kernels if isinstance(k.spec, Map) and k.spec.out == plan.outputs[2])
    dtypes = {n: plan.buffer(n).dtype for n in squared.reads if n != "k"}
    assert Counter(dtypes.values()) == {"bfloat16": 6, "float32": 1}, "the gradient of |k|² is a number per token"
    masses = {t for k in plan.kernels for t in k.reads if k.spec.name.startswith("grad_grad_k_mass")}
    assert {plan.buffer(n).dtype for n in masses if n.startswith("grad_mass")} == {"float32"}, "they cancel"


def test_gradients_come_in_the_dtype_of_the_call_and_sums_in_fp32() -> None:
    plan = joint("nsa")
    gradients = plan.outputs[1:]
    assert {plan.buffer(n).dtype for n in gradients} == {"bfloat16"}
    totals = [k for k in plan.kernels if type(k.spec).__name__ == "Total"]
    assert totals and all(plan.buffer(n).dtype == "float32" for k in totals for n in k.reads)


@pytest.mark.parametrize(
    "knobs",
    [{"landmark": "mean", "retrieval": "group_mean"}, {"landmark": "mean", "window": 24}, {"window": 24}],
    ids=str,
)
def test_a_kernel_of_two_results_rounds_what_the_caller_gets(knobs: dict[str, object]) -> None:
    plan = joint("hsa", knobs)
    assert {plan.buffer(n).dtype for n in plan.outputs[1:]} == {"bfloat16"}


@pytest.mark.parametrize("pre", ["none", "softmax"])
def test_a_maximum_over_the_group_has_a_gradient_unless_it_is_one_of_probabilities(pre: str) -> None:
    text = """
variant loudest(q: [B, T, H, D], k: [B, T, HKV, D], v: [B, T, HKV, DV]) {
  memory = tokens(k, v) {chunk = 16}
  marks = summary(memory) {size = 16, stride = 16}
  scores = reduce(score(q, marks)) {over = group, op = max, pre = PRE}
  chosen = topk(scores) {k = 2, size = 16, eligible = 16 * c <= i, selector_gradient = through_weights}
  w = weights(scores, chosen) {fn = sigmoid}
  return attend(q, memory, chosen, weights=w) {per = chunk}
}
""".replace("PRE", pre)
    made = differentiate(run(sparsec.parse(text)))
    static = {n: HEADS.get(n, 32) for n in static_names(made.variant.parameters)}

    def plan() -> Plan:
        return build_plan("loudest", made.variant.outputs, made.variant.names, static, "bfloat16")

    if pre == "none":
        assert backward(plan())["PooledGrad"] == 1
        return
    with pytest.raises(PlanError, match=r"a maximum of probabilities.*use their mean or sum"):
        plan()


def test_a_softmax_over_several_memories_has_one_gradient_of_queries() -> None:
    plan = joint("msa", {"slots": 8})
    (kernel,) = [k for k in plan.kernels if type(k.spec).__name__ == "TiledGradQ"]
    assert len(kernel.spec.forward.pieces) == 2  # type: ignore[union-attr]
    assert len(kernel.covers) == 1


def test_what_is_not_asked_for_is_not_computed() -> None:
    assert backward(joint("full", wrt=("v",))) == Counter({"RowDot": 1, "TiledGradKV": 1})
    (kernel,) = [k for k in joint("full", wrt=("v",)).kernels if type(k.spec).__name__ == "TiledGradKV"]
    assert kernel.spec.grad_k is None  # type: ignore[union-attr]


CHOSEN_BY = {
    "mean of the visible": (
        "reduce(reduce(score(q, marks)) {over = group}) {over = blocks, op = mean, kernel = 2, stride = 2, "
        "visible = 8 * c <= i}",
        "a mean over the visible summaries of a block has no gradient in a kernel; use a sum",
    ),
}


@pytest.mark.parametrize("case", CHOSEN_BY)
def test_pools_without_a_gradient_kernel_say_what_to_declare(case: str) -> None:
    scores, said = CHOSEN_BY[case]
    text = f"""
variant shares(q: [B, T, H, D], k: [B, T, HKV, D], v: [B, T, HKV, DV]) {{
  memory = tokens(k, v) {{chunk = 16}}
  marks = summary(memory) {{size = 8, stride = 8}}
  scores = {scores}
  chosen = topk(scores) {{k = 2, size = 16, eligible = 16 * c <= i, selector_gradient = through_weights}}
  w = weights(scores, chosen) {{fn = sigmoid}}
  return attend(q, memory, chosen, weights=w) {{per = chunk}}
}}
"""
    made = differentiate(run(sparsec.parse(text)))
    static = {n: HEADS.get(n, 32) for n in static_names(made.variant.parameters)}
    with pytest.raises(PlanError, match=said):
        build_plan("shares", made.variant.outputs, made.variant.names, static, "bfloat16")
