"""Backward kernels of selectors and summaries on the CPU, under Triton's interpreter, and compiled for absent GPUs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsec.backends.tvm.build import compile
from sparsec.lower.registry import default, lower_kernel
from sparsec.oracle.summary import summarise
from sparsec.plan.grad_specs import AnySpec, SummariseGrad
from sparsec.plan.specs import Pool, Selector, Summarise
from sparsec.scalar.expr import var
from sparsec.testing.kernels import pooled
from sparsec.testing.kernels.scratch import with_scratch
from sparsec.testing.kernels.selector import OUTPUTS, Sizes, draw, grads, selector, truth
from sparsec.testing.triton.ahead import ARCHITECTURES, shared_out, unfit

CASES: dict[str, Selector] = {
    "mean of a group": selector(6, 2, dim=48),
    "head by head": selector(4, 2, group=None, weights="softmax", slots=9, k=9, dim=80),
    "one list": selector(1, 1, weights="sigmoid", slots=4, k=4),
}


def of_summary(size: int, stride: int, dim: int, dtype: str) -> SummariseGrad:
    """The gradient of means of windows, from fp32."""
    forward = Summarise("s", "x", "out", 2, dim, size, stride, "N", "mean", dtype, "float32")
    return SummariseGrad("pull", forward, "g", "dx", "float32", dtype)


def layer(heads: int, kv_heads: int, dim: int, slots: int, **changes: object) -> Selector:
    """A selector of a real model."""
    sizes = {"dim": dim, "slots": slots, "k": slots, "dtype": "bfloat16", "key_dtype": "float32"}
    return selector(heads, kv_heads, **{**sizes, **changes})


def importance(heads: int, kv_heads: int, **changes: object) -> AnySpec:
    """Behind a softmax over compressed keys of 32 tokens every 16 and blocks of 64."""
    pool, seen = Pool("overlap", 32, 16, 64), var("c") * 16 + 31 <= var("i")
    sizes = {"dim": 128, "slots": 16, "k": 16, "dtype": "bfloat16", "pool": pool, "visible": seen, "weights": "stick"}
    return pooled.grad(pooled.selector(heads, kv_heads, **{**sizes, **changes}))


LAYERS: dict[str, tuple[AnySpec, ...]] = {
    "given landmarks": grads(layer(4, 4, 128, 8, key_dtype=None)),
    "16 heads": grads(layer(16, 1, 128, 8)),
    "64 slots": grads(layer(16, 4, 64, 64, group="sum", weights="softmax")),
    "split head dim": grads(layer(12, 4, 80, 5)),
    "wide": grads(layer(8, 4, 256, 32, group=None)),
    "fp32": grads(layer(16, 4, 128, 16, dtype="float32")),
    "importance": (importance(16, 1),),
    "importance of fp32 summaries": (importance(8, 2, key_dtype="float32"),),
    "importance in fp32": (importance(4, 4, dtype="float32"),),
    "summaries": (of_summary(64, 64, 128, "bfloat16"), of_summary(32, 16, 80, "bfloat16")),
}


def run_on_cpu(spec: AnySpec, tensors: dict[str, Tensor], params: dict[str, int], folder: Path) -> None:
    """All programs of a kernel from TVM; scratch is full of NaN or nonsense before."""
    lowered = lower_kernel(spec, default(spec, "tvm:llvm"))
    every, dims = with_scratch(lowered, tensors, params)
    for step in lowered.steps:
        compile(step.program, step.schedule, folder)([every[t.name] for t in step.program.tensors], dims)


@pytest.mark.parametrize("name", CASES)
def test_the_cpu_agrees_with_autograd(name: str, tmp_path: Path) -> None:
    s, n = CASES[name], Sizes(43, 17)
    x = draw(s, n, exact=False)
    want = truth(s, x)
    for spec in grads(s):
        run_on_cpu(spec, x, n.params, tmp_path)
    for name in OUTPUTS:
        torch.testing.assert_close(x[name].double(), want[name], rtol=1e-4, atol=1e-5)


def test_the_cpu_spreads_summaries(tmp_path: Path) -> None:
    x, g = torch.randn(2, 61, 2, 48, requires_grad=True), torch.randn(2, 4, 2, 48)
    (want,) = torch.autograd.grad(summarise(x, 24, 16, "mean"), x, g)
    dx, params = torch.full_like(want, math.nan), {"B": 2, "TQ": 1, "TK": 61, "q_offset": 0, "N": 4}
    run_on_cpu(of_summary(24, 16, 48, "float32"), {"g": g, "dx": dx}, params, tmp_path)
    torch.testing.assert_close(dx, want)


@pytest.mark.slow
def test_triton_agrees_with_autograd(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sparsec.testing.triton.selector", str(tmp_path)]
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    errors = json.loads(done.stdout.splitlines()[-1])
    assert errors.keys() == {*OUTPUTS, "pooled dq", "pooled dkeys", "dx", "rounds", "children"}
    assert errors["rounds"] == errors["children"] == 0
    assert all(e < 2e-6 for e in errors.values()), errors


def wrong(names: Iterable[str], arch: str, folder: Path) -> dict[str, object]:
    """What does not fit of the layers named; none is asked to use warp groups."""
    return unfit({name: LAYERS[name] for name in names}, arch, folder, wide=lambda program: False)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_defaults_fit_without_spills(arch: str, tmp_path: Path) -> None:
    assert wrong(shared_out(LAYERS, arch), arch, tmp_path) == {}


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_default_fits_everywhere(arch: str, tmp_path: Path) -> None:
    assert wrong(LAYERS, arch, tmp_path) == {}
