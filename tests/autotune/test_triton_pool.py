"""Compiling for a GPU that is not there: what the workers report, and what the estimates said before."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import sparsec
from sparsec.autotune.jobs import Job
from sparsec.autotune.trial import Built, Rejection
from sparsec.autotune.workers import Pool
from sparsec.lower.registry import default, lower_kernel
from sparsec.plan.plan import Kernel, Plan
from sparsec.runtime.compiled import compile
from sparsec.runtime.target import GPUS, Target
from sparsec.scalar.evaluate import evaluate
from sparsec.tile.resources import needs, refusal
from sparsec.tile.schedule import Schedule

DIMS = {"B": 1, "TQ": 1024, "TK": 1024, "H": 8, "HKV": 8, "D": 64, "DV": 64, "q_offset": 0}
HOPPER = GPUS["sm_90"]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compile(sparsec.preset("streaming", window=128, sinks=4), HOPPER).plan(DIMS, "bfloat16")


def job(plan: Plan, kernel: Kernel, schedule: Schedule, folder: Path, target: Target = HOPPER) -> Job:
    like = {}
    for b in plan.buffers:
        shape = b.size(DIMS)
        strides = itertools.accumulate(reversed(shape[1:]), lambda a, n: a * n, initial=1)
        like[b.name] = (b.dtype, shape, tuple(strides)[::-1])
    params = {name: int(evaluate(value, DIMS)) for name, value in kernel.params}
    return Job(kernel.spec, schedule, target, folder, params, like)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("triton")


@pytest.fixture(scope="module")
def pool(folder: Path) -> Iterator[Pool]:
    before = os.environ.get("TRITON_CACHE_DIR")
    os.environ["TRITON_CACHE_DIR"] = str(folder / "binaries")
    with Pool(2, preload=("sparsec.backends.triton.warm", "triton", "torch")) as made:
        yield made
    if before is None:
        del os.environ["TRITON_CACHE_DIR"]
    else:
        os.environ["TRITON_CACHE_DIR"] = before


SCHEDULES = [
    {"rows": 64, "block": 64, "stages": 2, "warps": 4, "phases": "split", "descriptors": False},
    {"rows": 128, "block": 64, "stages": 3, "warps": 8, "phases": "branch", "descriptors": False},
    {"rows": 64, "block": 32, "stages": 4, "warps": 4, "phases": "branch", "descriptors": True},
    {"rows": 64, "block": 128, "stages": 2, "warps": 4, "phases": "split", "descriptors": True},
]


def test_estimates_are_lower_bounds_and_close(plan: Plan, pool: Pool, folder: Path) -> None:
    kernel = plan.kernels[0]
    schedules = [replace(default(kernel.spec, HOPPER.name), **fields) for fields in SCHEDULES]  # type: ignore[arg-type]
    for number, schedule in enumerate(schedules):
        pool.submit(number, job(plan, kernel, schedule, folder))
    built = dict(pool.finished())
    for number, schedule in enumerate(schedules):
        (step,) = lower_kernel(kernel.spec, schedule).steps
        least, made = needs(step.program, schedule), built[number]
        assert isinstance(made, Built), made
        assert made.shared is not None and made.registers is not None and made.spills is not None
        assert least.registers <= made.registers
        assert least.shared <= made.shared + 1024, (schedule, least, made)
        assert made.shared <= 2 * least.shared + 32 * 1024, (schedule, least, made)


def test_what_does_not_fit_is_refused_before_and_after_compiling(plan: Plan, pool: Pool, folder: Path) -> None:
    kernel, tiny = plan.kernels[0], replace(HOPPER, shared=20 * 1024)
    schedule = replace(default(kernel.spec, HOPPER.name), stages=3, block=64)
    (step,) = lower_kernel(kernel.spec, schedule).steps
    before = refusal(step.program, schedule, tiny.shared)
    assert before is not None and before[0] == "shared memory" and "20480" in before[1]
    pool.submit(0, job(plan, kernel, schedule, folder, tiny))
    ((_, after),) = pool.finished()
    assert isinstance(after, Rejection) and after.why == "shared memory"


def test_too_many_registers_are_refused() -> None:
    wide = compile(sparsec.preset("full"), HOPPER).plan({**DIMS, "D": 128, "DV": 128}, "bfloat16").kernels[0]
    schedule = replace(default(wide.spec, HOPPER.name), rows=128, block=128, warps=4, registers=0)
    (step,) = lower_kernel(wide.spec, schedule).steps
    found = refusal(step.program, schedule, HOPPER.shared)
    assert found is not None and found[0] == "registers" and "more warps than 4" in found[1]
    assert refusal(step.program, replace(schedule, warps=8), HOPPER.shared) is None


LAUNCHER = """
import sys
from pathlib import Path
import torch
import sparsec
from sparsec.backends.triton.build import arguments, load, options
from sparsec.backends.triton.emit import emit
from sparsec.backends.triton.warm import _NamedTarget
from sparsec.lower.registry import default, lower_kernel
from sparsec.runtime.compiled import compile
from sparsec.scalar.evaluate import evaluate
from triton.runtime.driver import driver
dims = {dims!r}
plan = compile(sparsec.preset("streaming", window=128, sinks=4), "triton:sm_90").plan(dims, "bfloat16")
kernel = plan.kernels[0]
(step,) = lower_kernel(kernel.spec, default(kernel.spec, "triton:sm_90")).steps
tensors = {{b.name: torch.empty(b.size(dims), dtype=getattr(torch, b.dtype)) for b in plan.buffers}}
params = {{name: int(evaluate(value, dims)) for name, value in kernel.params}}
driver.set_active(_NamedTarget("sm_90"))
made = load(emit(step.program, step.schedule), step.program.name, Path({folder!r}) / "triton")
made.warmup(*arguments(step.program, step.schedule, tensors, params), grid=(1,), **options(step.schedule))
"""


def test_a_launch_finds_what_a_worker_compiled(plan: Plan, pool: Pool, folder: Path) -> None:
    kernel, binaries = plan.kernels[0], folder / "binaries"
    pool.submit(0, job(plan, kernel, default(kernel.spec, HOPPER.name), folder))
    ((_, made),) = pool.finished()
    assert isinstance(made, Built)
    before = sorted(p.name for p in binaries.rglob("*.cubin"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    code = LAUNCHER.format(dims=DIMS, folder=str(folder))
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
    assert sorted(p.name for p in binaries.rglob("*.cubin")) == before and before
