"""The job from a file to a folder, small; and what it measures."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy
import pytest
import torch

from sparsec.autotune.job import Limits, run_job
from sparsec.autotune.job.footprint import peak_bytes
from sparsec.autotune.job.outcome import outcomes
from sparsec.autotune.job.race import SETTLE, race
from sparsec.autotune.job.screen import Screen
from sparsec.cli import main
from sparsec.frontends.text import load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    generator = numpy.random.default_rng(0)
    path = tmp_path / "real.npz"
    arrays = {
        n: generator.standard_normal((150, h, 32)).astype(numpy.float16) for n, h in (("q", 3), ("k", 1), ("v", 1))
    }
    numpy.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_the_job_leaves_what_it_promises(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPARSEC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("shutil.which", lambda name: None)
    out = tmp_path / "out"
    options = ["--inputs", str(file), "--out", str(out), "--trials", "1", "--target", "cpu"]
    assert main(["tune", "hsa", "chunk=16", "k=2", "landmark=mean", "retrieval=group_mean", *options]) == 0
    assert main(["tune", "msa", "window=20", "slots=4", *options]) == 0
    shown = capsys.readouterr().out
    assert "topk(" in shown and "plan hsa" in shown and "dense mass kept" in shown
    first, second = outcomes(out)
    assert shown.count(f"{out / first.key / 'hsa.py'}: ") == 2 and f"{out / second.key / 'msa.py'}: " in shown
    assert (first.name, second.name) == ("hsa", "msa") and first.right and second.right
    assert "softmax inside each chosen chunk" in first.contenders[1].reason
    assert "C++ compiler" in second.contenders[1].reason
    assert first.seconds > 0 and first.predicted_s > 0 and 0 < first.mass["mean"] < 1
    assert [k.kind for k in first.kernels] == ["Summarise", "Selector", "GatheredAttention"]
    here = out / first.key
    assert {p.stem for p in (here / "kernels" / "tuned").iterdir()} >= {"summarise_marks_k", "select_chosen"}
    assert (here / "declaration.sparsec").read_text().count("topk(") == 1
    checked = subprocess.run([sys.executable, str(here / "hsa.py")], capture_output=True, text=True, cwd=tmp_path)
    assert checked.returncode == 0 and checked.stdout.startswith("right"), checked.stderr
    with sqlite3.connect(out / "trials.db") as database:
        assert database.execute("select count(*) from trials").fetchone()[0] >= 3
    assert (out / "report.html").read_text().count("<svg") >= 6


DOCUMENTS = """variant documents(document: [B,T] int32, q: [B,T,H,D], k: [B,T,HKV,D], v: [B,T,HKV,D]) {
  m = tokens(k, v)
  own = mask(m, document=document) {where = (j <= i) & (document[b, i] == document[b, j])}
  o = attend(q, m, own)
  return o, lse(o)
}"""


def test_one_length_for_all_and_whole_numbers_first(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with numpy.load(file) as arrays:
        numpy.savez(file, document=numpy.arange(150) // 40, **{n: arrays[n] for n in arrays})
    declared = tmp_path / "documents.sparsec"
    declared.write_text(DOCUMENTS)
    outcome = run_job(load(declared), file, tmp_path / "out", target="cpu", limits=Limits(1), screen=Screen(True))
    assert outcome.right and outcome.contenders[0].seconds is not None and outcome.dims["T"] == 150


def test_inputs_and_out_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "full", "--out", "somewhere"]) == 2
    assert "go together" in capsys.readouterr().err


def test_a_missing_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "full", "--inputs", str(tmp_path / "no.npz"), "--out", str(tmp_path / "out")]) == 2
    assert "no.npz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["T=151"], "T=151: the arrays of real.npz have"),
        (["--kernel", "nonsense"], "no kernel is called nonsense"),
        (["--seed", "3"], "--seed is for random inputs"),
        (["--dtype", "float8"], "kernels take float32"),
    ],
)
def test_what_real_inputs_do_not_allow_is_refused(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    out = tmp_path / "out"
    paths = ["--inputs", str(file), "--out", str(out), "--target", "cpu"]
    assert main(["tune", "streaming", "window=8", *words, *paths]) == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not out.exists() or not list(out.iterdir())


def test_nothing_is_made_where_the_inputs_cannot_be_read(tmp_path: Path) -> None:
    assert main(["tune", "full", "--inputs", str(tmp_path / "no.npz"), "--out", str(tmp_path / "out")]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_race_takes_turns() -> None:
    order: list[str] = []

    def runner(name: str) -> Callable[[], None]:
        return lambda: order.append(name)

    found = race({"a": runner("a"), "b": runner("b")}, "cpu", rounds=3)
    assert found.keys() == {"a", "b"}
    turns = [x for x, y in pairwise([*order, ""]) if x != y]
    assert turns == ["a", "b", "a", "b"]  # a b, b a, a b


def test_a_side_of_a_race_runs_untimed_until_others_threads_rest() -> None:
    """A library's threads wait for more work for a while, on the cores that the next one needs."""
    began = {"a": list[float](), "b": list[float]()}

    def runner(name: str) -> Callable[[], None]:
        def run() -> None:
            began[name].append(time.perf_counter())
            time.sleep(0.004)

        return run

    race({"a": runner("a"), "b": runner("b")}, "cpu", rounds=1)
    for starts in began.values():
        assert starts[-1] - starts[0] >= SETTLE - 0.004


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the resident set is read from /proc")
def test_the_footprint_sees_what_is_held() -> None:
    count = 8 * 2**20

    def hold() -> torch.Tensor:
        return torch.ones(count) + torch.ones(count)

    found = peak_bytes(hold, "cpu")
    if found is None:
        pytest.skip("the system does not let the peak be reset")
    assert 2.5 * 4 * count < found < 4 * 4 * count
