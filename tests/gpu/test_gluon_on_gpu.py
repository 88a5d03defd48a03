"""Tiled attention whose warps have roles, on a Hopper GPU: outputs, log-sum-exps, every length with one kernel."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import sparsec
from sparsec.frontends.preset import preset
from sparsec.ir.variant import Variant
from sparsec.lower.registry import known
from sparsec.oracle.error import check
from sparsec.runtime.compiled import Compiled, compile
from sparsec.tile.schedule import Schedule

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HOPPER, reason="roles are for Hopper")]

LENGTHS = (1, 77, 128, 300, 1025)
LAYERS: dict[str, tuple[Variant, dict[str, int]]] = {
    "causal": (preset("full"), {"H": 4, "HKV": 2, "D": 128, "DV": 128}),
    "causal of 64": (preset("full"), {"H": 2, "HKV": 2, "D": 64, "DV": 64}),
    "window and sinks": (preset("streaming", window=200, sinks=64), {"H": 4, "HKV": 1, "D": 128, "DV": 128}),
    "window and slots": (preset("msa", window=96, slots=128), {"H": 2, "HKV": 1, "D": 64, "DV": 128}),
}


def roles(layer: Compiled, dims: dict[str, int], dtype: str) -> dict[str, Schedule]:
    """The first schedule of each kernel that has a warp that loads for the others."""
    found = {}
    for kernel in layer.plan({**dims, "B": 1, "T": 1024, "TQ": 1024, "TK": 1024}, dtype).kernels:
        for schedule in (s for s in known(kernel.spec, "triton:sm_90") if s.producer):
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
        given = sparsec.inputs(variant, T=length, B=2, **dims)
        x = {n: t.to(getattr(torch, dtype)) for n, t in given.items()}
        want = sparsec.oracle(variant, **x, form="vector")
        for _ in range(3):
            got = layer(**{n: t.cuda() for n, t in x.items()})
            assert check(got.cpu(), want, dtype).ok, f"{name}, {length} tokens"
