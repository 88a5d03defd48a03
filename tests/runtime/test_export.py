"""Exported files run and check themselves in processes where sparsec cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsec.cli import main
from sparsec.runtime.exported.host import digest, distance, expect
from sparsec.runtime.exported.kernels import merged

SMALL = ["H=2", "HKV=1", "D=32", "DV=32", "--dtype", "float32"]
BLOCKER = """import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sparsec":
            raise ImportError("sparsec is blocked here")


sys.meta_path.insert(0, Blocker())
"""
VARIANTS = {
    "window": ["streaming", "window=16", "sinks=4"],
    "hsa": ["hsa", "chunk=16", "k=3", "DR=32"],
    "given": ["nsa", "block=16", "k=4", "selection=given", "branches=slc"],
    "listed": ["bigbird", "block=16"],
}


def exported(folder: Path, target: str, *words: str) -> Path:
    """A file written by `sparsec compile`, beside a sitecustomize that blocks sparsec."""
    path = folder / "exported.py"
    assert main(["compile", *words, *SMALL, "--target", target, "--out", str(path)]) == 0
    (folder / "sitecustomize.py").write_text(BLOCKER)
    return path


def run(path: Path, code: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run the file, or code beside it, in a process where sparsec is blocked."""
    words = ["-c", code] if code else [str(path)]
    whole = {**os.environ, "PYTHONPATH": str(path.parent), **env}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=whole, cwd=path.parent, timeout=300
    )


def test_the_blocker_blocks(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    done = run(tmp_path / "none.py", "import sparsec")
    assert done.returncode == 1 and "sparsec is blocked here" in done.stderr


def test_views_that_negate_are_refused() -> None:
    """Kernels read memory, which has other signs than such a view."""
    x = torch.ones(2, 3)
    expect("q", x, (2, 3), torch.float32, "cpu")
    with pytest.raises(ValueError, match="`q` is a view that negates"):
        expect("q", torch._neg_view(x), (2, 3), torch.float32, "cpu")


@pytest.mark.parametrize("name", ["window", "given"])
def test_tvm_files_check_themselves(name: str, tmp_path: Path) -> None:
    done = run(exported(tmp_path, "tvm:llvm", *VARIANTS[name]))
    assert done.returncode == 0 and done.stdout.startswith("right: the distance"), done.stderr


@pytest.mark.parametrize("name", VARIANTS)
def test_triton_files_check_themselves_interpreted(name: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    done = run(exported(tmp_path, "triton:sm_90", *VARIANTS[name]), TRITON_INTERPRET="1")
    assert done.returncode == 0 and done.stdout.startswith("right: the distance"), done.stderr


EMPTY_ROWS = """variant late(q: [B,TQ,H,D], k: [B,TK,HKV,D], v: [B,TK,HKV,DV]) {
  memory = tokens(k, v)
  o = attend(q, memory, mask(memory) {where = j + 5 <= i})
  return o, lse(o)
}
"""


def test_a_row_that_reads_nothing_checks_itself(tmp_path: Path) -> None:
    (tmp_path / "late.sparsec").write_text(EMPTY_ROWS)
    path = exported(tmp_path, "tvm:llvm", str(tmp_path / "late.sparsec"))
    done = run(path)
    assert done.returncode == 0 and done.stdout.startswith("right: the distance"), done.stderr
    no_number = "TRUTHS = [[float('nan')] * 12, [float('nan')] * 6] or ["
    path.write_text(path.read_text().replace("TRUTHS = [", no_number, 1))
    done = run(path)
    assert done.returncode == 1 and "wrong by inf" in done.stderr, "no number is not alike a truth that is none"


def test_digests_that_are_no_numbers() -> None:
    truth = torch.tensor([1.0, float("nan"), float("inf")])
    assert distance(truth, truth) == 0.0
    for wrong in (torch.tensor([1.0, 1.0, float("inf")]), torch.tensor([float("nan"), float("nan"), float("inf")])):
        assert distance(wrong, truth) == float("inf")
    empty = torch.tensor([[[-float("inf"), 1.0]]])
    assert distance(digest(empty, [0]), digest(torch.tensor([[[1.0, -float("inf")]]]), [0])) > 0.1


def test_a_wrong_kernel_fails_the_self_check(tmp_path: Path) -> None:
    path = exported(tmp_path, "triton:sm_90", *VARIANTS["window"])
    text = path.read_text()
    assert "< 16" in text
    path.write_text(text.replace("< 16", "< 15"))  # the window is one key too narrow
    done = run(path, TRITON_INTERPRET="1")
    assert done.returncode == 1 and "wrong by" in done.stderr


USE = """
import torch
from exported import run
q, k, v = torch.randn(2, 9, 2, 32), torch.randn(2, 21, 1, 32), torch.randn(2, 21, 1, 32)
o = run(q=q, k=k, v=v)
i, j = torch.arange(12, 21)[:, None], torch.arange(21)[None]
seen = (j <= i) & ((i - j < 16) | (j < 4))
expand = lambda x: x.expand(2, 21, 2, 32).transpose(1, 2)
truth = torch.nn.functional.scaled_dot_product_attention(q.transpose(1, 2), expand(k), expand(v), attn_mask=seen)
assert torch.allclose(o.transpose(1, 2), truth, atol=1e-5), (o.transpose(1, 2) - truth).abs().max()
sparse = k.repeat_interleave(2, -1)[..., ::2]
for wrong in (dict(q=q[..., :16]), dict(q=q.double()), dict(k=sparse)):
    try:
        run(**(dict(q=q, k=k, v=v) | wrong))
    except ValueError as error:
        print(error)
"""


def test_other_lengths_and_wrong_inputs(tmp_path: Path) -> None:
    path = exported(tmp_path, "tvm:llvm", *VARIANTS["window"])
    done = run(path, USE)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert "`q` is (2, 9, 2, 16)" in said[0] and "torch.float64" in said[1] and "last stride must be 1" in said[2]


WANTED = """import torch
from exported import run
q = torch.randn(1, 5, 2, 32, requires_grad=True)
k, v = torch.randn(1, 5, 1, 32), torch.randn(1, 5, 1, 32)
try:
    run(q, k, v)
except ValueError as error:
    print(error)
with torch.no_grad():
    print(run(q, k, v).shape == run(q.detach(), k, v).shape)
print(run(q.detach(), k, v).shape)
"""


def test_gradients_are_refused_and_not_lost(tmp_path: Path) -> None:
    path = exported(tmp_path, "tvm:llvm", *VARIANTS["window"])
    done = run(path, WANTED)
    said = "this file computes no gradients: use torch.no_grad() or detach"
    assert done.stdout.splitlines() == [said, "True", "torch.Size([1, 5, 2, 32])"], done.stderr
    assert "inference only" in path.read_text().split('"""')[1]


def test_the_text_is_readable(tmp_path: Path) -> None:
    text = exported(tmp_path, "triton:sm_90", *VARIANTS["hsa"]).read_text()
    assert text.count("\ndef rank(") == 1, "helpers are written once"
    assert "variant hsa(" in text and "# select_chosen computes" in text
    assert "sparsec." not in text.replace("written by sparsec", "")
    compile(text, "exported.py", "exec")


def test_what_runs_through_descriptors_is_said(tmp_path: Path) -> None:
    said = "sparsec runs attend_out through TMA descriptors; here they read by pointers"
    wide = ["full", "D=64", "DV=64", "H=2", "HKV=1", "--dtype", "bfloat16"]
    for target, expected in (("triton:sm_90", True), ("triton:gfx942", False)):
        path = tmp_path / "exported.py"
        assert main(["compile", *wide, "--target", target, "--out", str(path)]) == 0
        assert (said in path.read_text()) is expected


ODD = """variant odd(torch: [B,L,H,D], run: [B,S,HKV,D], device: [B,S,HKV,DV], document: [B,S] int32) {
  memory = tokens(run, device)
  seen = mask(memory, document=document) {where = (j <= i) & (document[b, i] == document[b, j])}
  return attend(torch, memory, seen)
}
"""


def test_odd_names_of_inputs_and_lengths(tmp_path: Path) -> None:
    (tmp_path / "odd.sparsec").write_text(ODD)
    path = exported(tmp_path, "tvm:llvm", str(tmp_path / "odd.sparsec"))
    text = path.read_text()
    assert "q_offset = S - L if" in text and "`run(torch_=…, run_=…, device_=…, document=…)`" in text
    done = run(path)
    assert done.returncode == 0 and done.stdout.startswith("right: the distance"), done.stderr


def test_two_functions_of_one_name_are_our_mistake() -> None:
    with pytest.raises(AssertionError, match="two different functions are called f"):
        merged(["def f():\n    return 1", "def f():\n    return 2"])


def test_nothing_half_written_where_the_export_fails(tmp_path: Path) -> None:
    path = tmp_path / "out.py"
    assert main(["compile", *VARIANTS["window"], *SMALL, "--target", "interpreter", "--out", str(path)]) == 2
    assert (
        main(["compile", *VARIANTS["window"], *SMALL, "--target", "tvm:llvm", "--out", str(tmp_path / "no" / "x.py")])
        == 2
    )
    assert list(tmp_path.iterdir()) == []
