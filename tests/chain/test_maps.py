"""Maps in whole variants: the oracle, every kernel and all gradients agree; packed, decoded and exported as others."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from sparsec import lang
from sparsec import variant as declare
from sparsec.frontends.preset import preset
from sparsec.ir import build
from sparsec.ir.node import Node
from sparsec.ir.variant import Variant
from sparsec.passes.pipeline import run, training
from sparsec.plan.build import build_plan
from sparsec.plan.plan import Plan, PlanError
from sparsec.runtime.compiled import compile
from sparsec.runtime.inputs import inputs
from sparsec.testing.whole.chain import links
from sparsec.testing.whole.packed import (
    cotangents_like,
    floats,
    gradients,
    largest_difference,
    largest_error,
    looped,
    looped_gradients,
    packed_case,
    results,
)
from sparsec.testing.whole.trained import wrong_on

SIZES = {"B": 2, "T": 37, "H": 4, "HKV": 2, "D": 32, "DV": 48, "M": 5}


def window(q: Node, k: Node, v: Node, **options: object) -> Node:
    """Attention to the last 16 tokens."""
    memory = lang.tokens(k, v)
    return lang.attend(q, memory, lang.mask(memory, where="(j <= i) & (j > i - 16)"), **options)  # type: ignore[arg-type]


@declare
def unit_length(q: "B T H D", k: "B T HKV D", v: "B T HKV DV", scale: "H 1 float32"):  # type: ignore # noqa
    """Queries and keys of unit length, a learned scale per head."""
    q = lang.map(lang.map(q, row="l2norm"), scale, fn="x0 * x1")
    return window(q, lang.map(k, row="l2norm"), v, scale=1.0)


@declare
def gated_output(q: "B T H D", k: "B T HKV D", v: "B T HKV DV", x: "B T H DV"):  # type: ignore # noqa
    """An output through a gate of its own."""
    return lang.map(window(q, k, v), x, fn="x0 * x1 * sigmoid(x1)")


@declare
def decays(x: "B T H", a: "H float32", dt: "H float32"):  # type: ignore # noqa
    """The decays of Mamba-2, and nothing else."""
    return lang.map(a, x, dt, fn="-exp(x0) * where(x1 + x2 > 20.0, x1 + x2, log(1.0 + exp(x1 + x2)))")


@declare
def forgetting(q: "B T H D", k: "B T HKV D", v: "B T HKV DV", x: "B T H", f: "H float32"):  # type: ignore # noqa
    """A running sum of a map, captured by a bias."""
    memory = lang.tokens(k, v)
    decay = build.prefix(lang.map(x, f, fn="-log(1.0 + exp(-(x0 + x1)))"))
    causal = lang.mask(memory, where="j <= i")
    return lang.attend(q, memory, causal, bias="score + decay[b, i, h] - decay[b, j, h]", decay=decay)


@declare
def slopes(q: "B T H D", k: "B T HKV D", v: "B T HKV DV", g: "H float32"):  # type: ignore # noqa
    """A captured tensor that is a map."""
    slope = lang.map(g, fn="-exp(x0)")
    return window(q, k, v, bias="score + slope[h] * (i - j)", slope=slope)


@declare
def two_gates(q: "B T H D", k: "B T HKV D", v: "B T HKV DV", g: "B T H", w: "B T H"):  # type: ignore # noqa
    """Gates of one merge through functions of their own, one of them also a result."""
    one, other = lang.map(g, fn="sigmoid(x0)"), lang.map(g, w, fn="tanh(x0 + x1)")
    return lang.merge(window(q, k, v), window(q, k, v, scale=0.1), fn="gated", gates=[one, other]), one


@declare
def several_readers(q: "B T H D", k: "B T HKV D", v: "B T HKV DV", x: "B T H DV"):  # type: ignore # noqa
    """A map and an attend that are results, and are read."""
    y = lang.map(q, row="l2norm")
    o = window(y, k, v)
    return y, o, lang.map(o, x, fn="x0 + x1")


@declare
def slots(q: "B T H D", k: "B T HKV D", v: "B T HKV DV", sk: "M HKV D", sv: "M HKV DV"):  # type: ignore # noqa
    """Learned keys of unit length."""
    learned = lang.attend(q, lang.slots(lang.map(sk, row="l2norm"), sv))
    return lang.merge(window(q, k, v), learned, fn="lse")


@declare
def chosen(q: "B T H D", k: "B T HKV D", v: "B T HKV DV", z: "B T H DV"):  # type: ignore # noqa
    """Chunks chosen by normalised queries and keys."""
    q, k = lang.map(q, row="l2norm"), lang.map(k, row="l2norm")
    pages = lang.tokens(k, v, chunk=16)
    scores = lang.reduce(lang.score(q, lang.summary(pages, size=16, stride=16)), over="group")
    top = lang.topk(scores, k=3, size=16, eligible="started", forced="c == i // 16")
    o = lang.attend(q, pages, top, lang.mask(pages, where="j <= i"), scale=4.0)
    return lang.map(o, z, fn="x0 * sigmoid(x1)")


@declare
def masses(q: "B T H D", k: "B T HKV D", v: "B T HKV DV"):  # type: ignore # noqa
    """A function of a log-sum-exp."""
    return lang.map(lang.lse(window(q, k, v)), fn="tanh(x0)")


@declare
def feature_map(q: "B T H D", k: "B T H D", v: "B T H DV"):  # type: ignore # noqa
    """Linear attention through a softmax over features."""
    state = lang.state(heads="H", rows="D", cols="DV")
    return lang.recall(lang.map(q, row="softmax"), lang.write(state, lang.map(k, row="softmax"), v))


VARIANTS: dict[str, Variant] = {
    v.name: v
    for v in (unit_length, gated_output, decays, forgetting, slopes, two_gates, several_readers, slots, chosen, masses,
              feature_map)
}  # fmt: skip


def sizes(variant: Variant, **others: int) -> dict[str, Any]:
    """The sizes of the dims that a variant has."""
    used = {str(dim) for node in variant.parameters for dim in node.shape}
    return {name: size for name, size in {**SIZES, **others}.items() if name in used}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_link_and_gradient_holds_in_bf16(name: str) -> None:
    variant = VARIANTS[name]
    given, compiled = inputs(variant, dtype="bfloat16", **sizes(variant)), compile(variant, "interpreter")
    assert [link.sentence for link in links(compiled, given) if not link.ok] == []
    assert wrong_on(compiled, given, "bfloat16") == []


@pytest.mark.parametrize("name", ["unit_length", "decays", "two_gates", "slots"])
def test_on_the_cpu(name: str) -> None:
    variant = VARIANTS[name]
    given, compiled = inputs(variant, dtype="float32", **sizes(variant)), compile(variant, "cpu")
    assert [link.sentence for link in links(compiled, given) if not link.ok] == []
    assert wrong_on(compiled, given, "float32") == []


@pytest.mark.parametrize("name", ["unit_length", "gated_output", "two_gates", "chosen"])
def test_packed_calls_are_a_loop_over_the_documents(name: str) -> None:
    layer = compile(VARIANTS[name], "interpreter")
    case = packed_case(layer.variant, (3, 0, 1, 20), (3, 0, 1, 20))
    outputs = results(layer, **case.packed, **case.ends)
    assert largest_difference(outputs, looped(layer, case)) == 0
    wrt, cotangents = floats(layer.variant), cotangents_like(outputs)
    wanted = looped_gradients(layer, case, wrt, cotangents)
    assert largest_error(gradients(layer, case, wrt, cotangents), wanted) < 1e-6


def plan(variant: Variant, backward: bool = False) -> Plan:
    """The plan of a variant in bf16."""
    made = training(variant).variant if backward else run(variant)
    return build_plan(variant.name, made.outputs, made.names, sizes(variant), "bfloat16")


def kinds(found: Plan) -> Counter[str]:
    """How many kernels of each kind."""
    return Counter(type(k.spec).__name__ for k in found.kernels)


def test_a_norm_and_its_scale_are_one_kernel_and_one_adjoint() -> None:
    assert kinds(plan(unit_length)) == {"Map": 2, "TiledAttention": 1}
    found = kinds(plan(unit_length, backward=True))
    assert found["Map"] == found["MapGrad"] == 2 and found["Total"] == 0


def test_gradients_that_only_maps_read_are_not_widened() -> None:
    found = plan(unit_length, backward=True)
    assert {b.dtype for b in found.buffers if len(b.shape) == 4} == {"bfloat16"}


def test_what_is_added_up_is_kept_in_fp32() -> None:
    terms = next(k for k in plan(forgetting).kernels if type(k.spec).__name__ == "Map")
    assert plan(forgetting).buffer(terms.writes[0]).dtype == "float32"
    output = next(k for k in plan(gated_output).kernels if type(k.spec).__name__ == "TiledAttention")
    assert plan(gated_output).buffer(output.writes[0]).dtype == "float32"


def test_gates_of_one_function_stay_in_the_merge() -> None:
    nsa = run(preset("nsa"))
    static = {"H": 4, "HKV": 2, "D": 32, "DV": 32}
    assert "Map" not in kinds(build_plan("nsa", nsa.outputs, nsa.names, static, "bfloat16"))


@declare
def of_integers(x: "B T H D", ids: "B T H 1 int32"):  # type: ignore # noqa
    """A map of what is no float."""
    return lang.map(x, ids, fn="x0 * x1")


@declare
def two_lengths(x: "B T H D", y: "T 1 M D"):  # type: ignore # noqa
    """A map whose result has two dims that are no numbers."""
    return lang.map(x, fn="x0 * 2.0"), lang.map(y, row="softmax")


@declare
def of_scores(q: "B T H D", k: "B T HKV D", v: "B T HKV DV"):  # type: ignore # noqa
    """A map of the weights of chosen chunks."""
    pages = lang.tokens(k, v, chunk=16)
    scores = lang.reduce(lang.score(q, lang.summary(pages, size=16, stride=16)), over="group")
    top = lang.topk(scores, k=3, size=16, eligible="complete_past")
    return lang.map(lang.weights(scores, top), fn="x0 * 2.0")


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        (of_integers, "`ids` is int32; kernels map floats: convert it before the call"),
        (of_scores, "weights `.*`: kernels read weights of parts here; compute others before the call"),
    ],
)
def test_what_has_no_kernel_is_refused(variant: Variant, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        build_plan("x", variant.outputs, variant.names, {**sizes(variant), "H": 4, "HKV": 2}, "float32")


def test_a_map_without_tokens_is_computed() -> None:
    variant = two_lengths
    given = inputs(variant, dtype="float32", **sizes(variant))
    _, found = compile(variant, "interpreter")(None, **given)
    torch.testing.assert_close(found, torch.softmax(given["y"], -1))
