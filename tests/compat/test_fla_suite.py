"""The plugin that runs flash-linear-attention's tests: what is exchanged, what stays theirs, what is skipped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SUITE = """
import pytest
import torch

def chunk_gla(q, k, v, g, **options):
    return "theirs", None

x = torch.zeros(1, 3, 1, 4)

def test_ours_beside_their_reference():
    ref, _ = chunk_gla(x, x, x, x)
    tri, _ = chunk_gla(x, x, x, x)
    assert ref == "theirs" and isinstance(tri, torch.Tensor)

def test_wrong():
    tri, _ = chunk_gla(x, x, x, x)
    assert tri is None

def test_refused():
    chunk_gla(x, x, x, x, head_first=True)

def test_of_nothing_of_ours():
    assert False

@pytest.mark.parametrize("n", [1, 2, 3])
def test_cases(n):
    chunk_gla(x, x, x, x)
"""


def test_the_plugin(tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    words = [sys.executable, "-m", "pytest", "-q", "-rsf", "-p", "sparsec.testing.fla_suite", "test_suite.py"]
    root = str(Path(__file__).resolve().parents[2])
    variables = {"PYTHONPATH": root, "FLA_CASES": "2", "SPARSEC_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300)
    assert "1 failed, 3 passed, 2 skipped" in done.stdout, done.stdout + done.stderr
    assert "test_suite.py::test_wrong" in done.stdout
    assert "refused: input chunk_gla: head_first" in done.stdout
    assert "calls no op of sparsec's" in done.stdout
