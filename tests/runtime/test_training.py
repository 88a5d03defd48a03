"""Gradients as torch's autograd sees them: which are made, what is saved, when there are none, and what is built."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from sparsec.frontends.text import parse
from sparsec.ir.error import InputError
from sparsec.oracle import oracle
from sparsec.plan.plan import PlanError
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.inputs import inputs as sparsec_inputs
from sparsec.testing.inputs.variants import small
from sparsec.testing.whole.case import WholeCase, on
from sparsec.testing.whole.trained import wrong_gradients

Inputs = dict[str, Tensor]


def drawn(name: str, *learned: str, tokens: int = 35, dtype: str = "float32") -> Inputs:
    """Inputs of a small variant; those named require a gradient, all floats if none is."""
    found = WholeCase(name, (tokens, tokens, None), dtype=dtype).inputs()
    wanted = learned or [n for n, x in found.items() if x.is_floating_point()]
    return {n: x.requires_grad_(n in wanted) for n, x in found.items()}


def called(compiled: Compiled, inputs: Inputs) -> Tensor:
    """The first output."""
    found = compiled(None, **inputs)
    return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize("name", ["full", "streaming", "msa-window", "msa-strided-gated"])
def test_kernels_for_a_gpu_give_the_oracles_gradients(name: str) -> None:
    assert wrong_gradients(WholeCase(name, (35, 35, None), (2, 1), (16, 16)), "interpreter") == []


@pytest.mark.parametrize("learned", [("q",), ("v",), ("k", "v"), ("k_slots",), ("q", "v_slots")])
def test_only_what_requires_a_gradient_gets_one(learned: tuple[str, ...]) -> None:
    compiled, inputs = on("msa-window", "cpu"), drawn("msa-window", *learned)
    called(compiled, inputs).square().sum().backward()
    assert {n for n, x in inputs.items() if x.grad is not None} == {*learned}
    everything = drawn("msa-window")
    called(compiled, everything).square().sum().backward()
    for name in learned:
        torch.testing.assert_close(inputs[name].grad, everything[name].grad)


def test_a_joint_plan_for_each_set_of_inputs_once() -> None:
    compiled = compile(small("streaming"), "interpreter")
    for learned in (("q",), ("k", "v"), ("q",), ("k", "v")):
        called(compiled, drawn("streaming", *learned))
    training = compiled.training
    one = training.joint({"H": 4, "HKV": 2, "D": 32, "DV": 32}, "float32", ("q",))
    assert one is training.joint({"H": 4, "HKV": 2, "D": 32, "DV": 32, "B": 7}, "float32", ("q",))
    written = {name for k in one.split.backward.kernels for name in k.writes}
    assert one.gradients.keys() == {"q"} and set(one.split.backward.outputs) <= written


def test_without_gradients_nothing_is_saved_or_planned() -> None:
    compiled, inputs = compile(small("streaming"), "cpu"), drawn("streaming")
    with torch.no_grad():
        out = called(compiled, inputs)
    assert not out.requires_grad and "training" not in vars(compiled)
    assert not called(compiled, {n: x.detach() for n, x in inputs.items()}).requires_grad
    lean = compiled.ready([x.detach() for x in inputs.values()]).plan
    assert lean.outputs == compiled.plan(compiled.bind(inputs)[0], "float32").outputs
    torch.testing.assert_close(called(compiled, inputs), out)


@pytest.mark.parametrize("weight", [(1.0, 0.0), (0.0, 1.0), (1.0, 0.5)])
def test_the_log_sum_exp_has_a_gradient(weight: tuple[float, float]) -> None:
    compiled, inputs = on("alibi-lse", "cpu"), drawn("alibi-lse")
    exact = {n: x.detach().double().requires_grad_() for n, x in inputs.items()}
    for run, leaves in ((compiled, inputs), (lambda _, **x: oracle(compiled.variant, x, form="vector"), exact)):
        out, lse = run(None, **leaves)
        (weight[0] * out.square().sum() + weight[1] * lse.square().sum()).backward()
    for name, x in inputs.items():
        assert x.grad is not None
        torch.testing.assert_close(x.grad.double(), exact[name].grad, rtol=1e-4, atol=1e-5)


def test_one_output_alone_is_enough() -> None:
    compiled, inputs = on("alibi-lse", "cpu"), drawn("alibi-lse")
    found = compiled(None, **inputs)
    assert isinstance(found, tuple)
    (grad,) = torch.autograd.grad(found[1].sum(), [inputs["v"]], allow_unused=True)
    assert grad is None or bool((grad == 0).all())


def test_what_does_not_depend_on_an_input_is_none() -> None:
    """Retrieval keys choose blocks and do nothing else where the selector's gradient is none."""
    compiled, inputs = on("joined", "cpu"), drawn("joined")
    called(compiled, inputs).sum().backward()
    assert inputs["l"].grad is None and inputs["q"].grad is not None


def test_spread_gradients_are_read_as_they_are_meant() -> None:
    compiled, one, other = on("msa-window", "cpu"), drawn("msa-window"), drawn("msa-window")
    called(compiled, one).sum().backward()  # the gradient of a sum is one number, seen everywhere
    out = called(compiled, other)
    out.backward(torch.ones_like(out).mT.contiguous().mT)
    assert all(torch.equal(one[n].grad, other[n].grad) for n in one)  # type: ignore[arg-type]


def test_checkpointing() -> None:
    compiled, one, other = on("msa-window", "cpu"), drawn("msa-window"), drawn("msa-window")
    for reentrant, inputs in ((False, one), (True, other)):
        names, tensors = list(inputs), list(inputs.values())

        def layer(*x: Tensor, names: list[str] = names) -> Tensor:
            return called(compiled, dict(zip(names, x, strict=True))).sin()

        checkpoint(layer, *tensors, use_reentrant=reentrant).sum().backward()
    plain = drawn("msa-window")
    called(compiled, plain).sin().sum().backward()
    assert all(torch.equal(plain[n].grad, x[n].grad) for x in (one, other) for n in plain)  # type: ignore[arg-type]


def test_backward_twice_needs_the_graph_kept_and_gives_the_same() -> None:
    compiled, inputs = on("streaming", "cpu"), drawn("streaming")
    out = called(compiled, inputs).sum()
    first = torch.autograd.grad(out, list(inputs.values()), retain_graph=True)
    second = torch.autograd.grad(out, list(inputs.values()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out, list(inputs.values()))


def test_gradients_of_gradients_are_refused() -> None:
    compiled, inputs = on("streaming", "cpu"), drawn("streaming")
    for power in (2, 1):  # the gradient of a sum's output depends on nothing, and that of the inputs still does
        (plain,) = torch.autograd.grad(called(compiled, inputs).pow(power).sum(), [inputs["q"]])
        (grad,) = torch.autograd.grad(called(compiled, inputs).pow(power).sum(), [inputs["q"]], create_graph=True)
        assert torch.equal(grad, plain)
        for wrt in ("q", "k"):
            with pytest.raises(RuntimeError, match="gradients of gradients have no kernels"):
                torch.autograd.grad(grad.sum(), [inputs[wrt]], retain_graph=True)


TWICE = """variant twice(q: [B,T,H,D], k: [B,T,H,D], v: [B,T,H,D]) {
  m = tokens(k, v)
  o = attend(q, m, mask(m) {where = j <= i})
  return o, lse(o), o
}"""


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 1), (1, 2, 3)])
def test_an_output_given_twice_has_the_gradients_of_both(weights: tuple[int, ...], packed: bool) -> None:
    compiled = compile(parse(TWICE), "interpreter")
    x = {n: t.requires_grad_() for n, t in sparsec_inputs(compiled.variant, T=5, H=1, D=16).items()}
    ends = {"cu_seqlens": torch.tensor([0, 5], dtype=torch.int32)} if packed else {}
    outputs = compiled(None, **{n: t[0] for n, t in x.items()} if packed else x, **ends)
    right = oracle(compiled.variant, x, form="vector")
    found, wanted = (
        torch.autograd.grad(sum(w * o.square().sum() for w, o in zip(weights, os, strict=True)), list(x.values()))
        for os in (outputs, right)
    )
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_new_lengths_and_batches_build_no_kernel() -> None:
    compiled, builds = compile(small("msa-window"), "cpu"), []
    for tokens in (35, 67, 20):
        called(compiled, drawn("msa-window", tokens=tokens)).sum().backward()
        builds.append(compiled.builds)
    assert len(set(builds)) == 1


def test_a_missing_backward_is_an_error_only_when_it_is_asked_for() -> None:
    compiled = compile(parse(small("hsa").text().replace("through_weights", "kl")), "interpreter")
    given = WholeCase("hsa", (35, 35, None)).inputs()
    plain = called(compiled, given)
    with pytest.raises(
        PlanError, match=r"no backward for r: .*selector_gradient = kl.*[^.]\. Without gradients: .*torch\.no_grad"
    ):
        compiled(None, **{n: x.clone().requires_grad_(n == "r") for n, x in given.items()})
    with torch.no_grad():
        again = called(compiled, {n: x.clone().requires_grad_() for n, x in given.items()})
    assert torch.equal(plain, again)


def _jvp(call: Callable[[Tensor], Tensor], x: Tensor) -> object:
    return torch.func.jvp(call, (x,), (x,))


def _dual(call: Callable[[Tensor], Tensor], x: Tensor) -> object:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(call(forward_ad.make_dual(x, x))).tangent


def _functional(call: Callable[[Tensor], Tensor], x: Tensor) -> object:
    return torch.func.grad(lambda y: call(y).sum())(x)


@pytest.mark.parametrize(
    ("derivative", "sentence"),
    [(_jvp, "has a tangent"), (_dual, "has a tangent"), (_functional, "torch.autograd alone")],
)
@pytest.mark.parametrize("packed", [False, True])
def test_derivatives_of_other_kinds_are_refused(
    derivative: Callable[[Callable[[Tensor], Tensor], Tensor], object], sentence: str, packed: bool
) -> None:
    """Tangents would be dropped: the derivative would be zero without a word."""
    compiled = on("streaming", "interpreter")
    given = {n: x.detach() for n, x in drawn("streaming", tokens=5).items()}
    if packed:
        given = {n: x[0] for n, x in given.items()} | {"cu_seqlens": torch.tensor([0, 2, 5], dtype=torch.int32)}

    def call(q: Tensor) -> Tensor:
        found = compiled(None, **{**given, "q": q})
        assert isinstance(found, Tensor)
        return found

    with pytest.raises(InputError, match=sentence):
        derivative(call, given["q"])
    with forward_ad.dual_level():
        assert forward_ad.unpack_dual(call(given["q"])).tangent is None
