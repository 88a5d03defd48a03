"""The file of a packed variant: it checks itself and runs on other documents in a process without sparsec."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from builtins import compile as compile_text
from pathlib import Path
from typing import Any

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
ends = torch.tensor([0, 35, 37, 43], dtype=torch.int32)
wrong = [{"cu_seqlens": torch.tensor(x, dtype=torch.int32)} for x in ([0, 9, 8, 43], [0, 40])]
wrong += [{"cu_seqlens": x} for x in (ends.tolist(), ends.long(), ends[None])]
wrong += [{"cu_seqlens_k": ends[:3]}, {"l": given["inputs"]["l"][:3]}, {"max_seqlen_k": 20}]
for changed in wrong:
    try:
        exported.run(**{**given["inputs"], **changed})
        print("accepted")
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
    off, *refusals = done.stdout.splitlines()
    assert float(off) < 1e-6
    parts = ["never descend", "end at 43", "is a list", "torch.int64", "(1, 4)", "different numbers of documents"]
    parts += ["`l` has 3 rows, and the documents have [3, 1, 1]", "a document of 35 tokens"]
    assert [part in refusal for part, refusal in zip(parts, refusals, strict=True)] == [True] * len(parts), refusals


ODD = """
variant odd(q: [B,T,H,D], ends: [B,T,HKV,D], q_len: [B,T,HKV,DV], total_TQ: [B,T,H]) {
  past = recall(q, write(state(), ends, q_len))
  return merge(past, total_TQ) {fn = gated}
}
"""


def test_inputs_called_as_the_launcher_calls_its_own(tmp_path: Path) -> None:
    (tmp_path / "odd.sparsec").write_text(ODD)
    path = tmp_path / "exported.py"
    words = [str(tmp_path / "odd.sparsec"), "H=2", "HKV=1", "D=16", "DV=16", "--packed", "--target", "cpu"]
    assert main(["compile", *words, "--dtype", "float32", "--out", str(path)]) == 0
    names = {"__name__": "exported"}
    exec(compile_text(path.read_text(), str(path), "exec"), names)
    run: Any = names["run"]
    compiled = compile(sparsec.parse(ODD), "cpu")
    x = packed_inputs(compiled, (3, 4), {"H": 2, "HKV": 1, "D": 16, "DV": 16}, "float32")
    given = {name if name in ("q", "cu_seqlens") else f"{name}_": t for name, t in x.items()}
    torch.testing.assert_close(run(**given), compiled(None, **x), rtol=0, atol=0)
    with pytest.raises(ValueError, match="odd has one length for queries and keys"):
        run(**given, cu_seqlens_k=torch.tensor([0, 5, 7], dtype=torch.int32))


def test_a_gpus_file_says_what_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", *HSA, "--target", "triton:sm_90", "--out", str(tmp_path / "exported.py")]) == 0
    text = (tmp_path / "exported.py").read_text()
    (run,) = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == "run"]
    names = [a.arg for a in run.args.args]
    assert {*names[:5]} == {*"qkvrl"}
    assert names[5:] == ["cu_seqlens", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"]
    assert "computes it for any documents." in text and "TMA descriptors" not in text


COUNTED = """
variant counted(q: [B,T,H,D], k: [B,T,HKV,D], v: [B,T,HKV,D], ids: [B,T,HKV,3] int32, held: [B,T,HKV] int32) {
  memory = tokens(k, v) {chunk = 16}
  chosen = given(ids, counts=held) {unit = chunk, size = 16}
  return attend(q, memory, chosen, mask(memory) {where = j <= i})
}
"""


def test_lists_with_counts(tmp_path: Path) -> None:
    """Only what is counted is read, and a file holds counts to the slots that there are, as a call does."""
    (tmp_path / "counted.sparsec").write_text(COUNTED)
    path = tmp_path / "exported.py"
    words = [str(tmp_path / "counted.sparsec"), "H=2", "HKV=1", "D=16", "--packed", "--target", "cpu"]
    assert main(["compile", *words, "--dtype", "float32", "--out", str(path)]) == 0
    names = {"__name__": "exported"}
    exec(compile_text(path.read_text(), str(path), "exec"), names)
    run: Any = names["run"]
    compiled = compile(sparsec.parse(COUNTED), "cpu")
    x = packed_inputs(compiled, (35, 4), {"H": 2, "HKV": 1, "D": 16}, "float32")
    x["held"] = torch.arange(39, dtype=torch.int32)[:, None] % 4
    behind = torch.arange(3) >= x["held"][..., None]
    found = run(**x)
    torch.testing.assert_close(found, compiled(None, **x), rtol=0, atol=0)
    torch.testing.assert_close(found, run(**x | {"ids": x["ids"].masked_fill(behind, -1)}), rtol=0, atol=0)
    for wrong in (4, -1):
        held = x["held"].clone()
        held[7] = wrong
        with pytest.raises(ValueError, match=r"the counts of `ids` are .* of 3 slots"):
            run(**x | {"held": held})
