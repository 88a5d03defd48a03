"""Chunks of fp32 inputs are fp32: they give what the token recurrence gives, to its own roundings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.frontends.text import parse
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.runtime.compiled import Compiled
from sparsec.tile.schedule import Schedule

SIZES: dict[str, Any] = {"B": 1, "T": 70, "H": 2, "HKV": 2, "D": 16, "DV": 16}
CHUNKS = Schedule(order="chunk", rows=16, value_block=16, splits=2)
ERASED = """variant v(q: [B,T,H,D], k: [B,T,3*HKV,D], v: [B,T,3*HKV,DV], g: [B,T,HKV] float32, a: [B,T,3*HKV,D],
                      b: [B,T,3*HKV,D]) {
  s = write(state(), k, v, decay=g, erase_a=a, erase_b=b) {decay_kind = scalar, rule = delta, steps = 3}
  return recall(q, s)
}"""


def results(made: Compiled, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """The output and all gradients, by name."""
    leaves = {name: t.clone().requires_grad_() for name, t in x.items()}
    out = made(**leaves)
    assert isinstance(out, Tensor)
    grads = torch.autograd.grad(out.square().sum(), list(leaves.values()))
    return {"o": out.detach(), **dict(zip(x, grads, strict=True))}


@pytest.mark.parametrize("name", ["deltanet", "gdn", "gla", "kda", "rwkv7", "gdn2", "erase vectors in three steps"])
def test_chunks_are_as_exact_as_the_recurrence(name: str) -> None:
    """Products of tf32, which half precision does not notice, were 2e-4 to 5e-4 off; now 2e-7 to 3e-6."""
    variant = parse(ERASED) if "steps" in name else sparsec.preset(name)
    x = sparsec.inputs(variant, dtype="float32", **SIZES)
    chunked, walked = (sparsec.compile(variant, target="interpreter") for _ in range(2))
    dims, dtype = chunked.bind(x)
    kernels = chunked.training.joint(dims, dtype, tuple(x)).whole.plan.kernels
    chunked.schedules = {k.name: CHUNKS for k in kernels if isinstance(k.spec, Scan | ScanGrad)}
    found, right = results(chunked, x), results(walked, x)
    errors = {n: float((found[n] - right[n]).norm() / right[n].norm()) for n in right}
    assert max(errors.values()) < 1e-5, errors
