"""What is asked for: subsets of inputs, names, what has exactly no gradient, and what is refused with a reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sparsec.frontends.preset import preset
from sparsec.frontends.text import parse
from sparsec.ir.error import DeclarationError, InputError
from sparsec.ir.op import Op
from sparsec.ir.variant import Variant
from sparsec.passes import pipeline
from sparsec.passes.differentiate import Differentiated, differentiate
from sparsec.passes.observers import Diffs
from sparsec.passes.pipeline import PIPELINE, training
from sparsec.testing.inputs.variants import small

PLAIN = """variant plain(q: [B,TQ,H,D], k: [B,TK,HKV,D], v: [B,TK,HKV,DV]) {
  m = tokens(k, v)
  o = attend(q, m, mask(m) {where = j <= i})
  return o, lse(o)
}"""
ROUTED = """variant routed(q: [B,TQ,H,D], k: [B,TK,HKV,D], v: [B,TK,HKV,DV], r: [B,TQ,H,D]) {
  m = tokens(k, v) {chunk = 4}
  scores = score(r, summary(m) {size = 4, stride = 4})
  chosen = topk(scores) {k = 2, size = 4, scope = head, selector_gradient = GRADIENT}
  w = weights(scores, chosen) {fn = sigmoid}
  return attend(q, m, chosen, weights=w) {per = chunk}
}"""


def adjoints(done: Differentiated) -> list[str]:
    """What the vjp nodes of a joint variant are the gradients of."""
    return [node.word("of") for node in done.variant.nodes if node.op is Op.VJP]


def test_one_gradient_needs_one_adjoint_and_one_cotangent() -> None:
    done = differentiate(parse(PLAIN), ["v"])
    assert adjoints(done) == ["v"]
    assert list(done.variant.inputs) == ["q", "k", "v", "grad_o"]
    assert list(done.gradients) == ["v"]


def test_gradients_come_in_the_order_asked_for() -> None:
    variant = parse(PLAIN)
    done = differentiate(variant, ["v", "q"])
    assert list(done.gradients) == ["v", "q"]
    assert done.variant.outputs == (*variant.outputs, *done.gradients.values())
    assert [str(dim) for dim in done.variant.outputs[-1].shape] == ["B", "TQ", "H", "D"]


def test_the_log_sum_exp_of_a_dense_merge_is_differentiated_branch_by_branch() -> None:
    done = training(preset("msa", window=4, slots=3), ["k"])
    (grad,) = [node for node in done.gradients.values() if node is not None]
    attend, cotangent = grad.positional
    merged = done.variant.outputs[0]
    assert (attend.op, merged.op, merged.word("fn")) == (Op.ATTEND, Op.MERGE, "lse")
    place = merged.src.index(attend)
    lse_grad = grad.operands["lse_grad"]
    assert (cotangent["of"], lse_grad["of"]) == (f"x{place}", f"lse{place}")
    assert cotangent.src == lse_grad.src == (merged, done.variant.parameters[-1])


def test_cotangents_have_the_dtype_of_their_outputs_and_a_free_name() -> None:
    variant = parse(PLAIN.replace("v: [B,TK,HKV,DV])", "grad_o: [B,TK,HKV,DV])").replace("(k, v)", "(k, grad_o)"))
    done = differentiate(variant)
    assert list(done.cotangents.values()) == ["grad_o_2", "grad_lse"]
    specs = [str(done.variant.inputs[name]) for name in done.cotangents.values()]
    assert specs == ["[B, TQ, H, DV]", "[B, TQ, H] float32"]
    assert parse(done.variant.text()) == done.variant


def test_what_only_selects_has_exactly_no_gradient() -> None:
    done = differentiate(parse(ROUTED.replace("GRADIENT", "none")))
    assert done.gradients["r"] is None
    assert "scores" not in adjoints(done)
    assert len(done.variant.outputs) == 1 + 3
    through = differentiate(parse(ROUTED.replace("GRADIENT", "through_weights")))
    assert through.gradients["r"] is not None


def test_an_input_that_a_pass_no_longer_needs_has_none() -> None:
    text = PLAIN.replace("v: [B,TK,HKV,DV])", "v: [B,TK,HKV,DV], s: [H])").replace(
        "{where = j <= i})", "{where = j <= i}, sink = map(s) {fn = 0.0}) {sink = given}"
    )
    done = training(parse(text))
    assert done.gradients["s"] is None
    assert "s" in done.variant.inputs


def test_nothing_asked_for_adds_nothing() -> None:
    variant = parse(PLAIN)
    done = differentiate(variant, [])
    assert done.variant.outputs == variant.outputs and not done.gradients and not done.cotangents
    frozen = differentiate(small("infllm2"), ["k"]).gradients["k"]
    assert frozen is not None


def test_integers_have_no_gradient() -> None:
    done = differentiate(small("nsa-given"))
    assert "indices" not in done.gradients


def test_the_runner_verifies_and_tells_the_observers() -> None:
    diffs = Diffs()
    training(parse(PLAIN), observers=(diffs,))
    assert [name for name, _ in diffs.found] == [*(step.__name__ for step in PIPELINE), "differentiate"]
    assert "+  grad_q = vjp(o, grad_o, lse_grad=grad_lse) {of = q}" in diffs.found[-1][1]


def test_a_broken_joint_graph_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from sparsec.ir.verify import VerifyError

    def broken(variant: Variant, wrt: object = None) -> Differentiated:
        done = differentiate(variant)
        last = replace(done.variant.outputs[-1], shape=())
        return replace(done, variant=done.variant.with_outputs([last]))

    broken.__name__ = "broken"
    monkeypatch.setattr(pipeline, "differentiate", broken)
    with pytest.raises(VerifyError, match=r"after broken: .*vjp"):
        training(parse(PLAIN))


@pytest.mark.parametrize(("name", "value", "fix"), [("queries", "unknown", "q"), ("indices", "int32", "k, v")])
def test_inputs_without_a_gradient_are_refused(name: str, value: str, fix: str) -> None:
    with pytest.raises(InputError) as caught:
        differentiate(small("nsa-given"), ["q", name])
    assert (caught.value.name, caught.value.value) == (name, value)
    assert fix in caught.value.fix


REFUSED: dict[str, tuple[Callable[[], object], str, str]] = {
    "kl without a loss": (
        lambda: training(parse(ROUTED.replace("GRADIENT", "kl"))),
        "topk `chosen`: selector_gradient = kl",
        "aux(scores, selection, target = the attend) {fn = kl}",
    ),
    "a residual": (lambda: differentiate(preset("rsa")), "residual ", "its gradient is not derived yet"),
    "twice": (
        lambda: training(training(parse(PLAIN)).variant),
        "<text>:3:7: vjp `grad_q`: double differentiation",
        "differentiate the variant without its gradients",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_node_and_a_fix(case: str) -> None:
    build, said, fix = REFUSED[case]
    with pytest.raises(DeclarationError) as caught:
        build()
    assert said in str(caught.value)
    assert fix in f"{caught.value.rule} {caught.value.fix}"


@pytest.mark.parametrize("gradient", ["straight_through", "kl"])
def test_a_selector_that_nothing_asked_about_is_no_obstacle(gradient: str) -> None:
    done = differentiate(parse(ROUTED.replace("GRADIENT", gradient)), ["q", "v"])
    assert adjoints(done) == ["q", "v"]


def test_states_beside_what_is_differentiated_are_no_obstacle() -> None:
    text = """variant both(q: [B,TQ,H,D], k: [B,TK,HKV,D], v: [B,TK,HKV,DV], x: [B,TQ,H,D], g: [B,TK,HKV,D]) {
      left = residual(v, write(state() , g, v), g)
      return attend(q, tokens(k, v)), recall(x, write(state() , g, left))
    }"""
    variant = parse(text)
    assert adjoints(differentiate(variant, ["q", "k"])) == ["q", "k"]
    with pytest.raises(DeclarationError, match="leads to v and write out of"):
        differentiate(variant, ["v"])
