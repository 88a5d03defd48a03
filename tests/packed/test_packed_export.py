"""The file of a packed variant: it checks itself and runs on other documents in a process without sparsec."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sparsec
from sparsec.cli import main
from sparsec.runtime.compiled import compile
from sparsec.runtime.packed.inputs import packed_inputs

HSA = ["hsa", "chunk=16", "k=3", "H=2", "HKV=1", "D=16", "DV=16", "DR=16", "--packed", "--dtype", "float32"]
CODE = """
import sys, torch
sys.modules["sparsec"] = None
import exported
assert exported.self_check() < 1e-5
given = torch.load("given.pt")
found = exported.run(**given["inputs"])
print(float((found - given["o"]).abs().max()))
for ends in (torch.tensor([0, 9, 8, 43]), torch.tensor([0, 40])):
    try:
        exported.run(**{**given["inputs"], "cu_seqlens": ends.int()})
    except ValueError as error:
        print(error)
"""


def test_other_documents_without_sparsec(tmp_path: Path) -> None:
    compiled = compile(sparsec.preset("hsa", chunk=16, k=3), "cpu")
    sizes = {"H": 2, "HKV": 1, "D": 16, "DV": 16, "DR": 16}
    inputs = packed_inputs(compiled, (35, 2, 6), sizes, "float32", seed=5)
    torch.save({"inputs": inputs, "o": compiled(None, **inputs)}, tmp_path / "given.pt")
    assert main(["compile", *HSA, "--target", "cpu", "--out", str(tmp_path / "exported.py")]) == 0
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, cwd=tmp_path, timeout=200, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    off, descends, short = done.stdout.splitlines()
    assert float(off) < 1e-6
    assert "never descend" in descends and "end at 43" in short


def test_a_gpus_file_says_what_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", *HSA, "--target", "triton:sm_90", "--out", str(tmp_path / "exported.py")]) == 0
    text = (tmp_path / "exported.py").read_text()
    (run,) = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == "run"]
    names = [a.arg for a in run.args.args]
    assert {*names[:5]} == {*"qkvrl"}
    assert names[5:] == ["cu_seqlens", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"]
    assert "computes it for any documents." in text and "TMA descriptors" not in text
