"""Derived gradients beside autograd through the oracle of the variant itself, for the tests of differentiation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor

from sparsec.ir.variant import Variant
from sparsec.oracle import oracle
from sparsec.oracle.form import FormName
from sparsec.passes.differentiate import Differentiated
from sparsec.passes.pipeline import training
from sparsec.runtime.inputs import inputs

SIZES = {"B": 2, "TQ": 6, "TK": 9, "H": 4, "HKV": 2, "D": 4, "DV": 3, "DR": 4, "HI": 2, "DI": 3}


Gradients = Callable[..., dict[str, Tensor | None]]


@pytest.fixture(scope="session")
def gradients() -> Gradients:
    """The check, on random fp64 inputs; ``joint`` is what is checked, by default what ``training`` gives."""
    return assert_autograd


def assert_autograd(
    variant: Variant,
    wrt: Sequence[str] | None = None,
    form: FormName = "vector",
    seed: int = 0,
    joint: Differentiated | None = None,
    **sizes: int,
) -> dict[str, Tensor | None]:
    """The joint variant's outputs and gradients against autograd through the variant."""
    joint, given = joint or training(variant, wrt), draw(variant, seed, sizes)
    leaves = {name: x.clone().requires_grad_(name in joint.gradients) for name, x in given.items()}
    truth = outputs(variant, leaves, form)
    generator = torch.Generator().manual_seed(seed + 1)
    seeds = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in truth]
    slopes = autograd(truth, [leaves[name] for name in joint.gradients], seeds)
    cotangents: dict[str, Tensor] = {}
    for node, x in zip(joint.variant.outputs, seeds, strict=False):  # one returned twice has one cotangent
        if (name := joint.cotangents.get(node)) is not None:
            cotangents[name] = cotangents.get(name, 0) + x
    found = outputs(joint.variant, {**given, **cotangents}, form)
    for actual, expected in zip(found, truth, strict=False):
        torch.testing.assert_close(actual, expected.detach(), rtol=1e-9, atol=1e-12)
    values = iter(found[len(truth) :])
    named = {name: None if node is None else next(values) for name, node in joint.gradients.items()}
    for (name, gradient), slope in zip(named.items(), slopes, strict=True):
        assert gradient is not None or not bool(slope.any()), f"{name} has a gradient"
        if gradient is not None:
            torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-12, msg=f"{name}: {gradient} is not {slope}")
    return named


def draw(variant: Variant, seed: int, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Random fp64 inputs."""
    names = {str(dim) for spec in variant.inputs.values() for dim in spec.shape}
    dims = {name: size for name, size in {**SIZES, **sizes}.items() if name in names}
    made = inputs(variant, dtype="float64", seed=seed, **dims)  # type: ignore[arg-type]
    return {name: x.double() if x.is_floating_point() else x for name, x in made.items()}


def outputs(variant: Variant, given: Mapping[str, Tensor], form: FormName) -> tuple[Tensor, ...]:
    """What the oracle gives, always as a tuple."""
    result = oracle(variant, given, form=form)
    return result if isinstance(result, tuple) else (result,)


def autograd(results: Sequence[Tensor], wanted: Sequence[Tensor], seeds: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The truth; zeros for what no result depends on."""
    live = [(x, seed) for x, seed in zip(results, seeds, strict=True) if x.requires_grad]
    if not live or not wanted:
        return tuple(torch.zeros_like(x) for x in wanted)
    roots, grads = zip(*live, strict=True)
    return torch.autograd.grad(roots, list(wanted), grads, allow_unused=True, materialize_grads=True)
