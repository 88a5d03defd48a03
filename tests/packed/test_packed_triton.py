"""Packed kernels for GPUs, without one: they compile for an H100, and agree in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsec.backends.triton.compile import CompileError, compile_all
from sparsec.frontends.preset import preset
from sparsec.lower.registry import default, lower_kernel
from sparsec.lower.segments import packed, schedule
from sparsec.runtime.compiled import compile
from sparsec.runtime.target import GPUS
from sparsec.testing.triton.ahead import job
from sparsec.testing.whole.packed import floats

DIMS = {"H": 16, "HKV": 4, "D": 64, "DV": 64, "DR": 64}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["msa", "hsa", "nsa"])
def test_both_halves_compile_for_hopper(name: str, tmp_path: Path) -> None:
    layer = compile(preset(name), "interpreter", tmp_path)
    joint = layer.training.joint(DIMS, "bfloat16", tuple(floats(layer.variant)))
    halves = layer.packed.halves(joint).split
    jobs = []
    for kernel in (*halves.forward.kernels, *halves.backward.kernels):
        lowered = packed(
            kernel, lower_kernel(kernel.spec, schedule(kernel.spec, default(kernel.spec, "triton:sm_90")))
        )[1]
        jobs += [job(step.program, step.schedule, "sm_90") for step in lowered.steps]
    for made in compile_all(jobs, tmp_path, timeout=400):
        assert not isinstance(made, CompileError), made
        assert made.resources.shared <= GPUS["sm_90"].shared


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [["msa-window", "hsa-mean", "full-softcap-sink"], ["sse", "sse_gdn", "delta_product"]]
)
def test_printed_programs_agree_with_the_tile_interpreter(names: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sparsec.testing.triton.packed", str(tmp_path), *names]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == set(names) and all(error < 2e-6 for errors in found.values() for error in errors)
