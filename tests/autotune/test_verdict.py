"""What kernels write that is no node's value has a meaning, which a verdict knows and holds them to."""

from __future__ import annotations

import pytest

import sparsec
from sparsec.autotune.truth import Truth
from sparsec.autotune.verdict import unjudged, wrong
from sparsec.plan.plan import Kernel
from sparsec.testing.whole.chain import Buffers, poisoned

SMALL = {"B": 2, "T": 9, "H": 2, "HKV": 1, "D": 16, "DV": 16, "DX": 8}
Ran = tuple[dict[str, Kernel], Buffers, dict[str, int]]


def ran(name: str, **knobs: object) -> Ran:
    """Every kernel of a preset by name, run by the tile interpreter, and its buffers."""
    compiled = sparsec.compile(sparsec.preset(name, **knobs), target="interpreter")
    inputs = sparsec.inputs(compiled.variant, dtype="float32", device="cpu", seed=0, **SMALL)
    dims, dtype = compiled.bind(inputs)
    plan = compiled.plan(dims, dtype)
    buffers = poisoned(plan, inputs, dims)
    for kernel in plan.kernels:
        compiled.built(kernel, dims).run(buffers, dims)
    return {kernel.name: kernel for kernel in plan.kernels}, buffers, dict(dims)


@pytest.fixture(scope="module")
def sse() -> Ran:
    return ran("sse", balance=0.5)


@pytest.mark.parametrize("kernel, buffer", [("route_chosen", "scores_shares"), ("route_chosen", "weight_weights"),
                                            ("balance_aux", "aux"), ("balance_aux", "aux_slopes")])  # fmt: skip
def test_routers_and_their_loss_are_held_to_the_oracle(sse: Ran, kernel: str, buffer: str) -> None:
    kernels, buffers, dims = sse
    truth = Truth(kernels[kernel], buffers, dims, None)
    assert wrong(truth, buffers) is None
    said = wrong(truth, {**buffers, buffer: buffers[buffer] * 1.001})
    assert said is not None and said.startswith(buffer)


def test_a_buffer_of_one_number_is_held_to_it() -> None:
    kernels, buffers, dims = ran("rsa", levels=2)
    fill = next(kernel for kernel in kernels.values() if not kernel.reads)
    name, truth = fill.writes[0], Truth(fill, buffers, dims, None)
    assert wrong(truth, buffers) is None
    assert wrong(truth, {**buffers, name: buffers[name] * 0}) == f"{name} is not 1 everywhere"


def test_nothing_that_the_routed_presets_write_is_left_unjudged(sse: Ran) -> None:
    assert [name for kernel in sse[0].values() for name in unjudged(kernel)] == []
