"""Printed programs under Triton's interpreter, in a process of its own, against the same references as everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsec.testing.tile.cases import CASES

# bf16 is left out: the interpreter multiplies its bit patterns.
NAMES = [name for name in CASES if "bfloat16" not in name]
DESCRIPTORS = ["window+", "chunks+"]
HALF = 2e-3
SINGLE = 2e-6


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The error of every case, from one run."""
    folder = tmp_path_factory.mktemp("interpreted")
    command = [sys.executable, "-m", "sparsec.testing.triton.tiles", str(folder), *NAMES, *DESCRIPTORS]
    root = Path(__file__).parents[2]
    env = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES + DESCRIPTORS)
def test_triton_agrees(name: str, errors: dict[str, float]) -> None:
    assert errors[name] < (HALF if "half" in name else SINGLE)
