"""Tiled attention whose warps have roles, on a Hopper GPU: outputs at every length, bits and gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sparsec.frontends.preset import preset
from sparsec.ir.variant import Variant
from sparsec.lower.registry import default, known
from sparsec.oracle.error import check
from sparsec.oracle.truth import oracle
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.inputs import inputs
from sparsec.tile.schedule import Schedule

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HOPPER, reason="roles are for Hopper")]

LENGTHS = (1, 77, 128, 300, 1025)
LAYERS: dict[str, tuple[Variant, dict[str, Any]]] = {
    "causal": (preset("full"), {"H": 4, "HKV": 2, "D": 128, "DV": 128}),
    "causal of 64": (preset("full"), {"H": 2, "HKV": 2, "D": 64, "DV": 64}),
    "window and sinks": (preset("streaming", window=200, sinks=64), {"H": 4, "HKV": 1, "D": 128, "DV": 128}),
    "window and slots": (preset("msa", window=96, slots=128), {"H": 2, "HKV": 1, "D": 64, "DV": 128}),
}


def roles(layer: Compiled, dims: dict[str, Any], dtype: str) -> dict[str, Schedule]:
    """Of each kernel the schedule with a warp that loads for the others."""
    found: dict[str, Schedule] = {}
    for kernel in layer.plan({**dims, "B": 1, "T": 1024, "TQ": 1024, "TK": 1024}, dtype).kernels:
        tried = (default(kernel.spec, "triton:sm_90"), *known(kernel.spec, "triton:sm_90"))
        for schedule in (s for s in tried if s.producer):
            found.setdefault(kernel.name, schedule)
    return found


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_agree_with_the_oracle(name: str, dtype: str, block: int) -> None:
    variant, dims = LAYERS[name]
    layer = compile(variant, "cuda")
    layer.schedules = {n: replace(s, block=block) for n, s in roles(layer, dims, dtype).items()}
    assert layer.schedules
    for length in LENGTHS:
        x = inputs(variant, dtype=dtype, **{**dims, "B": 2, "T": length})
        want = oracle(variant, x, form="vector")
        for _ in range(3):
            got = layer(None, **{n: t.cuda() for n, t in x.items()})
            assert isinstance(got, torch.Tensor) and isinstance(want, torch.Tensor)
            assert check(got.cpu(), want, dtype).ok, f"{name}, {length} tokens"


@pytest.mark.parametrize("name", LAYERS)
def test_bits_are_those_of_alike_warps_and_so_are_gradients(name: str) -> None:
    variant, dims = LAYERS[name]
    x = {n: t.cuda() for n, t in inputs(variant, dtype="bfloat16", **{**dims, "B": 2, "T": 1100}).items()}
    results = []
    for producer in (True, False):
        layer = compile(variant, "cuda")
        layer.schedules = {n: replace(s, producer=producer) for n, s in roles(layer, dims, "bfloat16").items()}
        leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
        out = layer(None, **leaves)
        assert isinstance(out, torch.Tensor)
        out.float().square().sum().backward()
        results.append([out.detach(), *(t.grad for t in leaves.values())])
    for mine, theirs in zip(*results, strict=True):
        assert mine is not None and theirs is not None and torch.equal(mine, theirs)
