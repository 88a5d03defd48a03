"""What selector_gradient says: nothing, through weights, straight through, or by the divergence from attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsec.frontends.preset import preset
from sparsec.frontends.text import parse
from sparsec.ir.variant import Variant
from sparsec.oracle import oracle
from sparsec.oracle.form import FormName
from sparsec.passes.differentiate import differentiate
from sparsec.runtime.inputs import inputs

INDEX = ("q_index", "k_index", "w_index")
SIZES: dict[str, Any] = {"B": 2, "TQ": 9, "TK": 9, "H": 4, "HKV": 2, "D": 8, "DV": 8, "HI": 3, "DI": 4}


def drawn(variant: Variant) -> dict[str, Tensor]:
    """Leaves in fp64."""
    found = inputs(variant, dtype="float64", seed=3, **SIZES)
    return {name: x.requires_grad_() for name, x in found.items()}


def scores(x: dict[str, Tensor]) -> Tensor:
    """The indexer of DSA with its constants, future tokens at -inf ``[B,TQ,TK]``."""
    dots = torch.einsum("bthd,bsd->bths", x["q_index"], x["k_index"][:, :, 0]).relu()
    found = torch.einsum("bths,bth->bts", dots, x["w_index"]) / (SIZES["DI"] * SIZES["HI"]) ** 0.5
    found = found.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    assert isinstance(found, Tensor)
    return found


def attention(x: dict[str, Tensor], seen: Tensor) -> Tensor:
    """Softmax attention over what is seen ``[B,TQ,H,TK]``."""
    logits = torch.einsum("bthd,bshd->bths", x["q"], x["k"].repeat_interleave(2, 2)) / SIZES["D"] ** 0.5
    shares = logits.masked_fill(~seen[:, :, None], -torch.inf).softmax(-1)
    assert isinstance(shares, Tensor)
    return shares


def best(score: Tensor) -> Tensor:
    """The 4 best; of equal scores, which a ReLU makes often, the first."""
    return score.sort(dim=-1, descending=True, stable=True).indices[..., :4]


def divergence(p: Tensor, score: Tensor, seen: Tensor) -> Tensor:
    """KL(p || softmax of the scores of the seen), by torch's own functions."""
    log_w = score.masked_fill(~seen, -torch.inf).log_softmax(-1)
    return torch.where(p > 0, torch.special.xlogy(p, p) - p * log_w.masked_fill(~seen, 0.0), 0.0).sum(-1)


@pytest.mark.parametrize("form", ["loop", "vector"])
@pytest.mark.parametrize("training", ["kl", "warm_up"])
def test_the_loss_is_the_divergence_from_summed_attention(training: str, form: FormName) -> None:
    variant = preset("dsa", k=4, training=training)
    x = drawn(variant)
    _, loss = oracle(variant, x, form=form)
    score = scores(x)
    seen = score > -torch.inf
    if training == "kl":
        kept = best(score)
        seen = torch.zeros_like(seen).scatter(-1, kept, True) & seen
    p = attention(x, seen).sum(2).detach() / SIZES["H"]
    expected = divergence(p, score, seen)
    torch.testing.assert_close(loss[..., 0], expected, rtol=0, atol=1e-12)
    wanted = torch.autograd.grad(expected.sum(), [x[name] for name in INDEX])
    found = torch.autograd.grad(loss.sum(), [*(x[name] for name in INDEX), x["q"]], allow_unused=True)
    for actual, exact in zip(found, wanted, strict=False):
        torch.testing.assert_close(actual, exact, rtol=0, atol=1e-11)
    assert found[-1] is None or not found[-1].any()  # the target has no gradient


@pytest.mark.parametrize("form", ["loop", "vector"])
def test_none_passes_exactly_nothing(form: FormName) -> None:
    variant = preset("dsa", k=4)
    x = drawn(variant)
    o = oracle(variant, x, form=form)
    assert isinstance(o, Tensor)
    found = torch.autograd.grad(o.sum(), [x[name] for name in INDEX], allow_unused=True)
    assert all(grad is None or not grad.any() for grad in found)
    assert all(differentiate(variant).gradients[name] is None for name in INDEX)


@pytest.mark.parametrize("form", ["loop", "vector"])
def test_straight_through_is_the_gradient_of_a_factor_on_the_chosen(form: FormName) -> None:
    text = preset("dsa", k=4).text().replace("order = score", "order = score, selector_gradient = straight_through")
    variant = parse(text)
    x = drawn(variant)
    grad = torch.randn(2, 9, 4, 8, dtype=torch.float64)
    found = torch.autograd.grad(oracle(variant, x, form=form), [x[name] for name in INDEX], grad)
    score = scores(x)
    kept = torch.zeros(score.shape, dtype=torch.bool).scatter(-1, best(score), True) & (score > -torch.inf)
    factor = torch.ones_like(score, requires_grad=True)
    p = attention(x, kept) * factor[:, :, None]
    o = torch.einsum("bths,bshe->bthe", p / p.sum(-1, keepdim=True), x["v"].repeat_interleave(2, 2))
    (slope,) = torch.autograd.grad(o, factor, grad)
    wanted = torch.autograd.grad(score.masked_fill(~kept, 0.0), [x[name] for name in INDEX], slope)
    for actual, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(actual, exact, rtol=0, atol=1e-11)
