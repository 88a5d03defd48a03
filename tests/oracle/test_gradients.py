"""Gradients of the oracle: slopes where there is one, exactly zero where the design says that there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsec.frontends.preset import preset
from sparsec.ir import build as ir
from sparsec.ir.variant import Variant, variant
from sparsec.oracle import oracle
from sparsec.oracle.form import FormName
from sparsec.runtime.inputs import inputs

SIZES = {"B": 1, "T": 7, "H": 2, "HKV": 1, "D": 2, "DV": 2, "DR": 2}
NSA = {"block": 4, "k": 3, "size": 4, "stride": 2, "window": 2}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("full", {"sink": "given", "softcap": 2.0}),
    ("msa", {"window": 3, "slots": 2}),
    ("hsa", {"chunk": 2, "k": 2, "sink": "zero"}),
    ("hsa", {"chunk": 2, "k": 2, "weights": "softmax", "landmark": "mean", "retrieval": "group_mean", "window": 2}),
    ("nsa", NSA),
    ("moba", {"block": 2, "k": 2}),
]


def sample(of: Variant) -> dict[str, Tensor]:
    names = {str(dim) for spec in of.inputs.values() for dim in spec.shape}
    sizes = {name: size for name, size in SIZES.items() if name in names or name == "T"}
    made = inputs(of, dtype="float64", seed=3, **sizes)  # type: ignore[arg-type]
    return {name: x.double().requires_grad_() for name, x in made.items()}


@pytest.mark.parametrize("form", ["loop", "vector"])
@pytest.mark.parametrize(("name", "knobs"), CASES)
def test_gradients_are_slopes(name: str, knobs: dict[str, Any], form: Any) -> None:
    of = preset(name, **knobs)
    x = sample(of)

    def outputs(*values: Tensor) -> Any:
        return oracle(of, dict(zip(x, values, strict=True)), form=form)

    assert torch.autograd.gradcheck(outputs, tuple(x.values()), fast_mode=True)


@pytest.mark.parametrize(("name", "knobs"), [("gdn", {}), ("sse", {"parts": 2}), ("rsa", {"levels": 2, "parts": 2})])
def test_gradients_of_states_are_slopes(name: str, knobs: dict[str, Any]) -> None:
    of = preset(name, **knobs)
    x = sample(of)
    of_values = lambda *values: oracle(of, dict(zip(x, values, strict=True)))  # noqa: E731
    assert torch.autograd.gradcheck(of_values, tuple(x.values()), fast_mode=True)


def gradient(of: Variant, x: dict[str, Tensor], *names: str) -> list[Tensor]:
    done = oracle(of, x, form="vector")
    assert isinstance(done, Tensor)
    wanted = [x[name] for name in names]
    return list(torch.autograd.grad(done.sin().sum(), wanted, allow_unused=True, materialize_grads=True))


def test_what_only_selects_has_no_gradient() -> None:
    q, k, v = ir.input("q", "B TQ H D"), ir.input("k", "B TK HKV D"), ir.input("v", "B TK HKV DV")
    memory, index = ir.tokens(k, v), ir.tokens(ir.input("ki", "B TK 1 D"))
    head_weights = ir.input("wi", "B TQ H")
    scores = ir.score(ir.input("qi", "B TQ H D"), index, fn="indexer", head_weights=head_weights)
    chosen = ir.topk(scores, k=2, unit="token", scope="token", eligible="c <= i")
    of = variant("dsa", ir.attend(q, memory, chosen))
    assert all(bool((g == 0).all()) for g in gradient(of, sample(of), "qi", "ki", "wi"))
    assert all(bool((g != 0).any()) for g in gradient(of, sample(of), "q", "k", "v"))


def test_the_selector_is_trained_through_its_weights_only_where_the_graph_says_so() -> None:
    learnt = preset("hsa", chunk=2, k=2)
    assert all(bool((g != 0).any()) for g in gradient(learnt, sample(learnt), "l", "r"))
    frozen = learnt.text().replace("through_weights", "none")
    from sparsec.frontends.text import parse

    silent = parse(frozen)
    assert all(bool((g == 0).all()) for g in gradient(silent, sample(silent), "l", "r"))
    assert all(bool((g != 0).any()) for g in gradient(silent, sample(silent), "q", "k", "v"))


def test_rows_that_see_nothing_have_finite_gradients() -> None:
    of = preset("hsa", chunk=4, k=2)
    x = sample(of)
    forms: tuple[FormName, FormName] = ("loop", "vector")
    for form in forms:
        done = oracle(of, x, form=form)
        assert isinstance(done, Tensor)
        assert bool((done[:, :4] == 0).all())
        grads = torch.autograd.grad(done.sum(), list(x.values()), allow_unused=True, materialize_grads=True)
        assert all(bool(g.isfinite().all()) for g in grads)
