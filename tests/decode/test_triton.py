"""Decode kernels for GPUs, without one: they compile for an H100 without spills, and agree in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsec.frontends.preset import preset
from sparsec.lower.lowered import Step
from sparsec.runtime import launch
from sparsec.runtime.compiled import compile
from sparsec.runtime.decode import appends
from sparsec.runtime.decode import kernels as decode_kernels
from sparsec.runtime.target import Target
from sparsec.testing.triton.ahead import job, misfits


class Noted(launch.Bind):
    """A program that was to be built."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "knobs"),
    [("hsa", {}), ("nsa", {}), ("nsa", {"rounding": "storage"}), ("moba", {}), ("streaming", {}), ("minimax", {})],
)
def test_steps_compile_for_hopper(
    name: str, knobs: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Step] = []

    def note(step: Step, target: Target, folder: Path) -> launch.Bind:
        steps.append(step)
        return Noted()

    for module in (appends, decode_kernels):
        monkeypatch.setattr(module, "build", note)
    monkeypatch.setenv("SPARSEC_EARLY_LAUNCH", "1")
    made = compile(preset(name, **knobs), "triton:sm_90", tmp_path)
    dims = {
        "B": 32,
        "TQ": 1,
        "TK": 65536,
        "H": 64,
        "HKV": 4,
        "D": 128,
        "DV": 128,
        "DR": 128,
        "DI": 128,
        "q_offset": 65535,
    }
    made.decoder.built(made.decoder.new(32, 65536, deterministic=False), dims, "bfloat16", 1)
    jobs = [(f"{s.program.name}", False, job(s.program, s.schedule, "sm_90", s.chain)) for s in steps]
    scored = any(s.program.name.endswith("_scores") for s in steps)
    assert scored == (name in ("hsa", "nsa", "moba") and not knobs)  # else attention leaves its logits, or all is dense
    assert all(s.chain is not None for s in steps)
    assert len(jobs) >= 3 and misfits(jobs, "sm_90", tmp_path) == {}


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 2e-6), ("float16", 4e-3)])
def test_printed_steps_agree_with_the_tile_interpreter(dtype: str, bound: float, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sparsec.testing.triton.decode", str(tmp_path), dtype, "streaming", "hsa"]
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"streaming", "hsa"} and all(x < bound for x in found.values())
