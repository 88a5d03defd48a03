"""Functions made of others against torch's: values in fp32 at every size, slopes against autograd, every spelling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sparsec.scalar.composed import COMPOSED
from sparsec.scalar.derivative import derivative
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import var
from sparsec.scalar.parse import parse
from sparsec.scalar.trace import trace

THEIRS: dict[str, Callable[[Tensor], Tensor]] = {
    "log1p": torch.log1p,
    "softplus": functional.softplus,
    "log_sigmoid": functional.logsigmoid,
    "logsigmoid": functional.logsigmoid,
    "silu": functional.silu,
    "relu": functional.relu,
}
SIZES = torch.logspace(-30, 1.9, 200)
POINTS = torch.cat([-SIZES.flip(0), torch.zeros(1), SIZES])
x = var("x0", "float")


def points(name: str) -> Tensor:
    return POINTS[POINTS > -0.99] if name == "log1p" else POINTS


@pytest.mark.parametrize("name", COMPOSED)
def test_values_in_fp32_are_exact_to_fp32_whatever_their_size(name: str) -> None:
    at = points(name)
    ours, theirs = evaluate(COMPOSED[name](x), {"x0": at}), THEIRS[name](at.double())
    if name == "softplus":  # torch's own gives x itself beyond its threshold of 20, which is as exact in fp32
        theirs = torch.logaddexp(at.double(), torch.zeros(()).double())
    torch.testing.assert_close(torch.as_tensor(ours).double(), theirs, rtol=1e-5, atol=1e-36)


@pytest.mark.parametrize("name", COMPOSED)
def test_slopes_equal_autograd(name: str) -> None:
    at = points(name).double().requires_grad_()
    (theirs,) = torch.autograd.grad(THEIRS[name](at).sum(), at)
    ours = evaluate(derivative(COMPOSED[name](x), x), {"x0": at.detach().float()})
    torch.testing.assert_close(torch.as_tensor(ours).double(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", COMPOSED)
def test_every_spelling_is_the_same_expression(name: str) -> None:
    wanted = COMPOSED[name](x)
    assert parse(f"{name}(x0)") is wanted
    assert trace(lambda x0: THEIRS[name](x0), {"x0": "float"}) is wanted


def test_what_is_no_function_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"unknown function.*softplus"):
        parse("softplux(x0)")
