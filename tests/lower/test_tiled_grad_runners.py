"""Backward kernels of tiled attention where they are run: compiled for the CPU, and under Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsec.backends.tvm.build import compile
from sparsec.lower.lowered import Lowered
from sparsec.lower.registry import default
from sparsec.scalar.evaluate import evaluate
from sparsec.testing.kernels.tiled import backward, grad_kv
from sparsec.testing.triton.tiled import cases, errors
from sparsec.tile.schedule import Schedule

Run = dict[str, dict[str, float]]
CASES = cases()


def test_the_cpu_agrees(tmp_path: Path) -> None:
    case = CASES["slopes"]

    def run(lowered: Lowered, x: dict[str, Tensor], params: Mapping[str, int]) -> None:
        for s in lowered.scratch:
            x[s.name] = torch.full([int(evaluate(n, params)) for n in s.shape], torch.nan)
        for step in lowered.steps:
            made = compile(step.program, step.schedule, tmp_path)
            made([x[t.name] for t in step.program.tensors], params)

    schedule: Schedule = default(grad_kv(case, 0), "tvm:llvm")
    for gradient, error in errors(case, backward(case, schedule, run)).items():
        assert error < 1e-5, gradient


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The errors of all cases, from one process."""
    command = [sys.executable, "-m", "sparsec.testing.triton.tiled", str(tmp_path_factory.mktemp("interpreted"))]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found: Run = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_triton_agrees(name: str, interpreted: Run) -> None:
    for gradient, error in interpreted[name].items():
        assert error < 1e-5, gradient
