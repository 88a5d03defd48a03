"""Matrix states: the quick form is the token-by-token one, and their adjoints are autograd of the whole oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsec.frontends.text import parse
from sparsec.ir.variant import Variant
from sparsec.oracle import oracle
from sparsec.oracle.form import FormName
from sparsec.passes.differentiate import differentiate
from sparsec.testing.inputs.recurrent import RECURRENT, ROUTES
from sparsec.testing.inputs.recurrent import draw as drawn

FORMS: tuple[FormName, ...] = ("loop", "vector")
SIZES = {"B": 2, "T": 37, "H": 4, "HKV": 2, "D": 3, "DV": 5, "DX": 4}
CASES = {**RECURRENT, **ROUTES}


def draw(variant: Variant, **sizes: int) -> dict[str, Tensor]:
    return drawn(variant, SIZES | sizes, torch.float64)


def results(variant: Variant, x: dict[str, Tensor], form: FormName) -> tuple[Tensor, ...]:
    found = oracle(variant, x, form=form)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("case", CASES)
def test_a_chunk_at_a_time_is_token_by_token(case: str) -> None:
    variant = parse(CASES[case])
    x = draw(variant)
    for quick, slow in zip(results(variant, x, "vector"), results(variant, x, "loop"), strict=True):
        torch.testing.assert_close(quick, slow, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", FORMS)
def test_adjoints_are_autograd_of_the_whole_oracle(case: str, form: FormName) -> None:
    variant = parse(CASES[case])
    done = differentiate(variant)
    tokens = 9 if form == "loop" else 90
    x = draw(done.variant, T=tokens)
    joint = dict(zip(done.variant.outputs, results(done.variant, x, form), strict=True))
    given = {name: x[name].clone() for name in variant.inputs}
    leaves = {name: y.requires_grad_() for name, y in given.items() if y.is_floating_point()}
    outputs = results(variant, given, form)
    cotangents = [x[done.cotangents[node]] for node in variant.outputs]
    expected = torch.autograd.grad(outputs, list(leaves.values()), cotangents, materialize_grads=True)
    assert list(done.gradients) == list(leaves)
    for (name, node), truth in zip(done.gradients.items(), expected, strict=True):
        if node is None:  # what only chooses
            assert not truth.any(), name
            continue
        torch.testing.assert_close(joint[node], truth, rtol=1e-8, atol=1e-10, msg=name)


def test_adjoints_agree_with_finite_differences() -> None:
    variant = parse(CASES["learned"])
    x = {n: y.clamp(min=-3) if n == "g" else y for n, y in draw(variant, T=5, B=1, H=2, HKV=1).items()}
    x = {name: y.requires_grad_() for name, y in x.items()}
    assert torch.autograd.gradcheck(
        lambda *y: results(variant, dict(zip(x, y, strict=True)), "vector"), tuple(x.values()), fast_mode=True
    )


def test_the_gradients_print_and_parse() -> None:
    done = differentiate(parse(CASES["two-readers"]))
    assert parse(done.variant.text()).outputs == done.variant.outputs
    assert "vjp(s, grad_s, grad_s_out_2, grad_s_out) {of = k}" in done.variant.text()


def test_no_token_leaves_the_states_as_they_were() -> None:
    variant = parse("variant x(k: [B,T,HKV,D], v: [B,T,HKV,DV], m: [B,1,HKV,D,DV]) { return write(state(m), k, v) }")
    x = draw(variant, T=0)
    for form in FORMS:
        assert bool((results(variant, x, form)[0] == x["m"]).all())
