"""Gradients of masses of keys: what directions hand back stands across the masses, and cancels against the keys."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.lower.registry import default, lower_kernel
from sparsec.oracle import check, oracle
from sparsec.passes.pipeline import training
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.runtime.compiled import compile
from sparsec.runtime.kernel import BuiltKernel
from sparsec.runtime.target import INTERPRETER
from sparsec.testing.whole.chain import poisoned
from sparsec.tile.schedule import Schedule

HEAD = "k: [B,T,HKV,D], beta: [B,T,HKV] float32, g: [B,T,HKV] float32"
WHOLE = f"variant whole({HEAD}) {{ return mass(k, beta=beta, decay=g) }}"
ROUTED = f"""variant routed({HEAD}, x: [B,T,1,DX], w: [3,1,DX]) {{
  logits = score(x, w) {{fn = router, scale = 1.0}}
  chosen = topk(logits) {{k = 1, unit = part, scope = token, selector_gradient = through_weights}}
  e = weights(logits, chosen) {{fn = softmax, renormalise = false}}
  return mass(k, beta=beta, decay=g, route=chosen, weight=e)
}}"""
SCHEDULES = {
    "token": Schedule(order="token", value_block=16, block=16, rows=2),
    "chunk": Schedule(order="chunk", rows=16, value_block=16, splits=2),
}


@pytest.mark.parametrize("order", SCHEDULES)
@pytest.mark.parametrize("text", [WHOLE, ROUTED], ids=["one state", "parts"])
def test_in_half_precision(text: str, order: str, tmp_path: Path) -> None:
    """With what is written and states rounded once, decays have a gradient outside the bounds of their worst tile."""
    variant = sparsec.parse(text)
    sizes = {"B": 1, "T": 70, "HKV": 2, "D": 16} | ({"DX": 8} if "x" in variant.inputs else {})
    x = sparsec.inputs(variant, dtype="bfloat16", device="cpu", seed=0, **sizes)
    z = oracle(variant, x)
    assert isinstance(z, Tensor)
    joint = training(variant)
    cotangent = next(iter(joint.cotangents.values()))
    made = compile(joint.variant, "interpreter")
    given = {**x, cotangent: across(z)}
    dims, dtype = made.bind(given, None)
    plan = made.plan(dims, dtype)
    buffers = poisoned(plan, given, dims)
    for kernel in plan.kernels:
        scans = isinstance(kernel.spec, Scan | ScanGrad)
        own = BuiltKernel(kernel, SCHEDULES[order], INTERPRETER, tmp_path) if scans else made.built(kernel, dims)
        own.run(buffers, dims)
    truth = oracle(joint.variant, given, form="vector")
    for name, right in zip(plan.outputs, truth, strict=True):
        verdict = check(buffers[name], right, "bfloat16", "grad" if name.startswith("grad") else "o")
        assert verdict, f"{name} is {verdict.sentence}"


def across(z: Tensor) -> Tensor:
    """Noise without its share along the masses, in fp32."""
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=z.dtype)
    unit: Tensor = z / z.norm(dim=-1, keepdim=True)
    along: Tensor = (noise * unit).sum(-1, keepdim=True)
    return (noise - along * unit).float()


@pytest.mark.parametrize(("dims", "columns"), [(64, 64), (128, 128), (256, 128)])
def test_the_last_program_has_no_pipelined_loop(dims: int, columns: int) -> None:
    """Which Triton 3.6 gets wrong on Hopper where the products are of halves."""
    made = sparsec.compile(sparsec.preset("rsa", levels=2, raw=True), target="interpreter")
    sizes = {"B": 1, "T": 100, "H": 1, "HKV": 1, "D": dims, "DV": dims, "DX": 16}
    joint = made.training.joint(sizes, "bfloat16", tuple(made.variant.inputs))
    masses = [k for k in joint.split.backward.kernels if isinstance(k.spec, ScanGrad) and k.spec.forward.writes.split]
    assert masses
    for kernel in masses:
        steps = lower_kernel(kernel.spec, default(kernel.spec, "triton:sm_90")).steps
        last = next(s.schedule for s in steps if s.program.name == kernel.name)
        assert (last.value_block, last.stages) == (columns, 1)
