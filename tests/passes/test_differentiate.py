"""Derived gradients are those of autograd through the oracle of the variant itself, to rounding of fp64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from sparsec.frontends.text import parse
from sparsec.ir.variant import Variant
from sparsec.oracle import oracle
from sparsec.oracle.form import FormName
from sparsec.passes.pipeline import training
from sparsec.runtime.inputs import inputs
from sparsec.testing.variants import NAMES, small

SIZES = {"B": 2, "TQ": 17, "TK": 19, "H": 4, "HKV": 2, "D": 4, "DV": 3, "DR": 4}


def draw(variant: Variant, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    """Random fp64 inputs."""
    names = {str(dim) for spec in variant.inputs.values() for dim in spec.shape}
    dims = {name: size for name, size in {**SIZES, **sizes}.items() if name in names}
    made = inputs(variant, seed=seed, **dims)  # type: ignore[arg-type]
    return {name: x.double() if x.is_floating_point() else x for name, x in made.items()}


def outputs(variant: Variant, given: Mapping[str, Tensor], form: FormName) -> tuple[Tensor, ...]:
    """What the oracle gives, always as a tuple."""
    result = oracle(variant, given, form=form)
    return result if isinstance(result, tuple) else (result,)


def assert_autograd(
    variant: Variant, given: Mapping[str, Tensor], wrt: Sequence[str] | None = None, form: FormName = "vector"
) -> dict[str, Tensor | None]:
    """The joint variant's outputs and gradients against autograd through the variant; gives the gradients."""
    joint, generator = training(variant, wrt), torch.Generator().manual_seed(7)
    leaves = {name: x.clone().requires_grad_(name in joint.gradients) for name, x in given.items()}
    truth = outputs(variant, leaves, form)
    seeds = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in truth]
    live = [(x, seed) for x, seed in zip(truth, seeds, strict=True) if x.requires_grad]
    wanted = [leaves[name] for name in joint.gradients]
    slopes = torch.autograd.grad(
        [x for x, _ in live], wanted, [seed for _, seed in live], allow_unused=True, materialize_grads=True
    )
    after = training(variant, wrt).variant.outputs[: len(truth)]
    cotangents = {joint.cotangents[node]: s for node, s in zip(after, seeds, strict=True) if node in joint.cotangents}
    found = outputs(joint.variant, {**given, **cotangents}, form)
    for actual, expected in zip(found, truth, strict=False):
        torch.testing.assert_close(actual, expected.detach(), rtol=1e-9, atol=1e-12)
    values = iter(found[len(truth) :])
    gradients = {name: None if node is None else next(values) for name, node in joint.gradients.items()}
    for (name, gradient), slope in zip(gradients.items(), slopes, strict=True):
        if gradient is None:
            assert not bool(slope.any()), f"{name} has a gradient"
        else:
            torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
    return gradients


@pytest.mark.parametrize("name", NAMES)
def test_every_small_variant(name: str) -> None:
    variant = small(name)
    gradients = assert_autograd(variant, draw(variant))
    assert any(g is not None and bool((g != 0).any()) for g in gradients.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_text_of_a_joint_variant_is_read_back(name: str) -> None:
    joint = training(small(name)).variant
    again = parse(joint.text())
    assert again == joint
    assert again.digest == joint.digest
