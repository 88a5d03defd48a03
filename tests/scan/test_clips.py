"""Clips that rounding decides: sides are the kernels', gradients are held to the truth of these, faults are found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.variant import Variant
from sparsec.oracle import oracle
from sparsec.passes import expand_residual
from sparsec.passes.pipeline import run
from sparsec.scalar.expr import Expr, constant
from sparsec.scalar.functions import maximum, minimum
from sparsec.testing.whole.chain import as_tuple
from sparsec.testing.whole.clips import Sides, clipped, measured, sides, told
from sparsec.testing.whole.trained import wrong_on

SIZES: dict[str, Any] = {"B": 1, "T": 200, "H": 2, "HKV": 2, "D": 64, "DV": 64}


def levels(**knobs: Any) -> Variant:
    """Two levels of one part, read by their sum."""
    return sparsec.preset("rsa", raw=True, **{"levels": 2, "parts": 1, "readout": "sum"} | knobs)


def drawn(variant: Variant, **sizes: int) -> dict[str, Tensor]:
    """Inputs in bf16."""
    return sparsec.inputs(variant, dtype="bfloat16", **SIZES | sizes)


def found_on(variant: Variant, x: dict[str, Tensor], dtype: str = "bfloat16") -> Sides:
    """The sides of the tile interpreter's kernels."""

    def interpreted(asked: Variant) -> Tensor | tuple[Tensor, ...]:
        return sparsec.compile(asked, "interpreter")(**x)

    outputs = as_tuple(interpreted(variant))
    return sides(variant, interpreted, lambda asked: oracle(run(asked), x, form="vector"), outputs, dtype)


def test_few_sides_are_turned() -> None:
    variant = levels()
    found = found_on(variant, drawn(variant))
    assert found and found.wrong == 0 < found.open
    assert f"{found.open} lie within a margin" in found.sentence
    assert len(found.found) == len(clipped(variant)) == 1


def test_what_is_rounded_before_it_is_clipped_is_wrong() -> None:
    """Within the margin, but half of what lies there is turned; a kernel's own sides are all but a few right."""
    variant = levels()
    x = drawn(variant)

    def exact(asked: Variant) -> tuple[Tensor, ...]:
        return as_tuple(oracle(run(asked), x, form="vector"))

    def rounded(asked: Variant) -> tuple[Tensor, ...]:
        out, above, _ = exact(asked)
        left = (above + 1).bfloat16().double()
        return out, left - 1, -left - 1

    found = sides(variant, rounded, exact, exact(variant), "bfloat16")
    assert not found and found.wrong == 0


def test_distances_leave_the_outputs_as_they_are() -> None:
    variant = levels()
    x = drawn(variant, T=20)

    def exact(asked: Variant) -> tuple[Tensor, ...]:
        return as_tuple(oracle(asked, x, form="vector"))

    with pytest.raises(AssertionError, match="outputs change"):
        sides(variant, exact, exact, [exact(variant)[0] + 1e-9], "bfloat16")


@pytest.mark.parametrize("knobs", [{}, {"rule": "additive"}, {"left": "pre", "levels": 3}])
def test_the_truth_told_its_own_sides_is_the_truth(knobs: dict[str, Any]) -> None:
    """To the last gradient; distances come before any weight."""
    variant = levels(**knobs)
    x = drawn(variant, T=40, D=16, DV=16)
    exact = as_tuple(oracle(measured(variant), x, form="vector"))
    beyond = [(a > 0).double() - (b > 0).double() for a, b in zip(exact[1::2], exact[2::2], strict=True)]
    assert any(bool(side.any()) for side in beyond) and len(beyond) == len(clipped(variant))
    decided, given = told(variant, beyond)

    def gradients(asked: Variant, more: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        leaves = {name: t.double().requires_grad_() for name, t in x.items()}
        out = as_tuple(oracle(asked, {**leaves, **more}, form="vector"))[0]
        return torch.autograd.grad(out.square().sum(), list(leaves.values()))

    torch.testing.assert_close(gradients(decided, given), gradients(variant, {}))


def test_one_element_on_the_other_side_is_an_error_of_its_own() -> None:
    """What the sides are for: the truths differ by more than the bound of a tile where one element was turned."""
    variant = levels()
    x = drawn(variant)
    found = found_on(variant, x)
    side = found.found[0].clone()
    at = int((side != 0).flatten().nonzero()[0])
    side.view(-1)[at] = 0

    def gradient(beyond: Tensor) -> Tensor:
        leaves = {name: t.double().requires_grad_(name == "v") for name, t in x.items()}
        decided, given = told(variant, (beyond,))
        out = as_tuple(oracle(run(decided), {**leaves, **given}, form="vector"))[0]
        return torch.autograd.grad(out.square().sum(), leaves["v"])[0]

    one, other = gradient(found.found[0]), gradient(side)
    assert float((one - other).abs().max()) > 0.1 * float(one.square().mean().sqrt())


def _unclipped(node: Node, left: Expr) -> Expr:
    return left


def _higher(node: Node, left: Expr) -> Expr:
    return minimum(maximum(left, constant(-1.01)), constant(1.01))


@pytest.mark.parametrize("fault", [_unclipped, _higher])
def test_kernels_that_clip_otherwise_are_wrong(monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    """Those that forget the clip, and those whose clip is a hundredth away."""
    variant = levels()
    x = drawn(variant)
    layer = sparsec.compile(variant, "interpreter")
    assert wrong_on(layer, x, "bfloat16") == []
    monkeypatch.setattr(expand_residual, "_clipped", fault)
    found = wrong_on(sparsec.compile(variant, "interpreter"), x, "bfloat16")
    assert any(sentence.startswith("gradient of v is outside") for sentence in found)


def test_what_is_made_of_a_residual_alone_is_one_map_with_it() -> None:
    """Stored between the two in bf16, distances from a clip had the sign of what was rounded: half of them turned."""
    graph = run(measured(levels()))
    above, below = graph.outputs[1:]
    assert above.src == below.src and all(source.op is not Op.MAP for source in above.src)
    assert above["align"] == below["align"] == "heads"
