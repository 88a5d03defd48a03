"""Backward kernels of gathered attention on the CPU, under Triton's interpreter, and compiled for absent GPUs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsec.backends.tvm.build import compile
from sparsec.lower.registry import default, lower_kernel
from sparsec.plan.grad_specs import AnySpec
from sparsec.plan.specs import Capture, GatheredAttention
from sparsec.scalar.expr import element, var
from sparsec.scalar.functions import tanh
from sparsec.testing.kernels.gathered import Sizes, attention, draw, grad_kv, grad_q, truth
from sparsec.testing.kernels.scratch import with_scratch
from sparsec.testing.triton.ahead import ARCHITECTURES, shared_out, unfit

H, ROW, KEY, SCORE = var("h"), var("i"), var("j"), var("score", "float")
BIAS = SCORE + tanh(SCORE) - element("slopes", H) * (ROW - KEY)
CASES: dict[str, GatheredAttention] = {
    "joint": attention(3, 2, (48, 80), where=KEY <= ROW),
    "biased": attention(2, 1, bias=BIAS, captures=(Capture("slopes", "float32", 1),), chunk=32),
    "per chunk": attention(3, 2, (32, 48), per="chunk", counts="counts"),
    "per chunk beside a sink": attention(2, 2, per="chunk", chunk=128, sink="zero", scope="token"),
    "small chunks": attention(4, 1, chunk=2, slots=9),
}
SIZES = Sizes(19, 203, 184, batch=2)


def large(group: int, dim: int, per: str, chunk: int = 64, scope: str = "kv_head") -> GatheredAttention:
    """A layer of a real model."""
    where = None if per == "chunk" else KEY <= ROW
    return attention(group, 4, (dim, dim), per=per, chunk=chunk, scope=scope, slots=16, where=where, dtype="bfloat16")


LAYERS: dict[str, GatheredAttention] = {
    **{
        f"{per} {group} {dim}": large(group, dim, per)
        for per in ("joint", "chunk")
        for group, dim in ((16, 128), (4, 64))
    },
    "fp32 chunk": replace(large(16, 128, "chunk"), dtype="float32"),
    "moba": large(1, 128, "joint", 512, "head"),
}


def causal(i: Tensor, j: Tensor, h: Tensor) -> Tensor:
    return j <= i


@pytest.mark.parametrize("name", CASES)
def test_the_cpu_agrees_with_autograd(name: str, tmp_path: Path) -> None:
    s, rule = CASES[name], causal if CASES[name].where is not None else None
    x = draw(s, SIZES, torch.float32)
    want = truth(s, x, SIZES.offset, rule)
    out = {f"d{n}": torch.full_like(x[n], math.nan) for n in "qkvw"}
    given = {n: want[n].float() for n in ("lse", "delta")}
    for spec in (grad_q(s), grad_kv(s)):
        lowered = lower_kernel(spec, default(spec, "tvm:llvm"))
        every, dims = with_scratch(lowered, {**x, **given, **out}, SIZES.params)
        for step in lowered.steps:
            compile(step.program, step.schedule, tmp_path)([every[t.name] for t in step.program.tensors], dims)
    for n in ("dq", "dk", "dv", *(("dw",) if s.per == "chunk" else ())):
        torch.testing.assert_close(out[n].double(), want[n], rtol=1e-4, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_triton_agrees_with_autograd(per: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sparsec.testing.triton.gathered", str(tmp_path), per]
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    errors = json.loads(done.stdout.splitlines()[-1])
    assert len(errors) == (4 if per == "chunk" else 3)
    assert all(e < 2e-6 for e in errors.values()), errors


def specs(names: Iterable[str]) -> dict[str, list[AnySpec]]:
    """The backward kernels of the layers named."""
    return {name: [grad_q(LAYERS[name]), grad_kv(LAYERS[name])] for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_defaults_fit_without_spills(arch: str, tmp_path: Path) -> None:
    assert unfit(specs(shared_out(LAYERS, arch)), arch, tmp_path) == {}


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_default_fits_everywhere(arch: str, tmp_path: Path) -> None:
    assert unfit(specs(LAYERS), arch, tmp_path) == {}
