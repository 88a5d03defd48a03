"""`sparsec tune` and `sparsec bench` reach the tuner and the benchmarks, and report what they give."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from sparsec.autotune.report import KernelReport, Report
from sparsec.benchmarks import crossover
from sparsec.benchmarks.apart import rows_apart
from sparsec.benchmarks.cases import WindowCase
from sparsec.benchmarks.own import own
from sparsec.benchmarks.row import read_json, write_json
from sparsec.benchmarks.timing import Pair
from sparsec.cli import main
from sparsec.frontends.preset import preset
from sparsec.runtime.compiled import compile
from sparsec.tile.schedule import Schedule

Captured = pytest.CaptureFixture[str]
SMALL = ["streaming", "window=8", "sinks=2", "T=96", "H=2", "HKV=1", "D=16", "DV=16", "--target", "cpu"]


def test_tune_writes_records_that_the_next_compile_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("SPARSEC_CACHE_DIR", str(tmp_path))
    assert main(["tune", *SMALL, "--trials", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["target"] == "tvm:llvm" and len(report["kernels"][0]["trials"]) == 2
    assert list((tmp_path / "records").glob("*.json")) and (tmp_path / "trials.db").exists()
    assert main(["tune", *SMALL, "--trials", "2", "--seconds", "60"]) == 0
    assert "attend_out" in capsys.readouterr().out


def test_tune_names_the_kernels_that_there_are(capsys: Captured) -> None:
    assert main(["tune", *SMALL, "--kernel", "attend"]) == 2
    assert "attend_out" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["-3", "nan"])
def test_tune_refuses_times_that_are_none(capsys: Captured, seconds: str) -> None:
    assert main(["tune", *SMALL, "--trials", "1", "--seconds", seconds]) == 2
    assert f"seconds = {seconds}: give the time" in capsys.readouterr().err


@pytest.mark.parametrize("gradients", [False, True])
def test_tune_passes_on_what_was_asked(monkeypatch: pytest.MonkeyPatch, gradients: bool) -> None:
    asked: dict[str, object] = {}
    monkeypatch.setattr("sparsec.autotune.tune", lambda *_, **options: asked.update(options) or Report("cpu", (), 0.0))
    assert main(["tune", *SMALL, "--trials", "3", *(["--gradients"] if gradients else [])]) == 0
    assert asked["gradients"] is gradients and asked["trials"] == 3


def test_an_interrupted_tuning_exits_as_shells_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = Report("cpu", (KernelReport("attend", None, Schedule(), None, None, (), "interrupted"),), 0.0)
    for report in (stopped, Report("cpu", (), 0.0, ("interrupted before attend was tuned",))):
        monkeypatch.setattr("sparsec.autotune.tune", lambda *_, found=report, **__: found)
        assert main(["tune", *SMALL]) == 130


def test_real_tensors_go_without_gradients(capsys: Captured) -> None:
    assert main(["tune", *SMALL, "--gradients", "--inputs", "x.npz", "--out", "there"]) == 2
    assert "--gradients does not go with" in " ".join(capsys.readouterr().err.split())


def test_bench_lists_cases(capsys: Captured) -> None:
    assert main(["bench", "--list"]) == 0
    assert "window_cpu (cpu)" in capsys.readouterr().out
    assert main(["bench", "--list", "--json"]) == 0
    assert "moba_k8" in json.loads(capsys.readouterr().out)


def test_bench_refuses_cases_that_are_none(capsys: Captured) -> None:
    assert main(["bench", "windw"]) == 2
    assert "did you mean `window`" in capsys.readouterr().err
    assert main(["bench", "nope"]) == 2 and capsys.readouterr().err.count("moba_k8") == 1


def test_ours_computes_the_case() -> None:
    case = WindowCase("small", 1, 2, 1, 64, 16, 8, 2, device="cpu", dtype=torch.float32)
    inputs = case.inputs()
    i, j = torch.arange(64)[:, None], torch.arange(64)
    seen = (j <= i) & ((i - j < 8) | (j < 2))
    q, k, v = (inputs[n].transpose(1, 2).expand(1, 2, 64, 16) for n in "qkv")
    truth = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    torch.testing.assert_close(own(case, inputs, 0)(), truth.transpose(1, 2), rtol=1e-4, atol=1e-5)


TINY = crossover.Setting("cpu", "float32", (2, 1), 16, (64, 128))


def test_rows_are_kept_case_by_case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured) -> None:
    def stub(words: list[str], limit: float, report: object) -> None:
        if words[0] == "hsa":
            raise KeyboardInterrupt
        found: list[dict[str, object]] = [
            {"preset": words[0], "knobs": {}, "length": None, "points": [], "refused": ""}
        ]
        Path(words[-1].removeprefix("--out=")).write_text(json.dumps(found))

    monkeypatch.setattr("sparsec.benchmarks.apart.run", stub)
    out = tmp_path / "rows.json"
    assert main(["bench", "nsa", "moba", "--crossover", "--out", str(out)]) == 0
    assert [row["preset"] for row in json.loads(out.read_text())] == [
        "nsa",
        "moba",
    ] and "moba" in capsys.readouterr().out
    main(["bench", "moba", "hsa", "--crossover", "--out", str(out)])
    assert [row["preset"] for row in json.loads(out.read_text())] == ["moba"]


def test_crossover_finds_the_first_length_that_wins(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    ratios = iter([0.5, 1.5])
    monkeypatch.setattr(crossover, "CPU", TINY)
    monkeypatch.setattr(crossover, "time_pair", lambda *_: Pair(1.0, r := next(ratios), r, r, r, 1))
    assert main(["bench", "streaming", "--crossover", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["length"] == 128 and [p["ratio"] for p in found["points"]] == [0.5, 1.5] and not found["refused"]


def test_crossover_ends_where_a_step_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[int] = []

    def pair(ours: object, dense: object, asked: int, device: str) -> Pair:
        rounds.append(asked)
        return Pair(2.0, 1.0, 0.5, 0.5, 0.5, asked)

    monkeypatch.setattr(crossover, "time_pair", pair)
    monkeypatch.setattr(crossover, "_check", lambda *_: None)
    said: list[str] = []
    (found,) = crossover.crossovers(["streaming"], TINY, rounds=3, longest=0.0, report=said.append)
    assert [p.length for p in found.points] == [64] and rounds == [1] and found.length is None
    assert found.stopped.startswith("no longer one: a step at 64 took") and found.stopped in said[-1]
    assert found.stopped in crossover.line(asdict(found))[-1]


def test_crossover_times_and_says_what_is_refused(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    (moba,) = crossover.crossovers(["moba"], TINY, rounds=1, report=lambda text: None)
    assert moba.points and all(p.ours_ms > 0 and p.dense_ms > 0 for p in moba.points)
    assert moba.knobs == {"block": 64, "k": 16} and not moba.refused

    def refuse(*_: object) -> None:
        raise ValueError("no backward")

    monkeypatch.setattr(crossover, "_check", refuse)
    out = tmp_path / "found" / "rows.json"
    assert main(["bench", "rsa", "--crossover", "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())
    assert row["refused"] == "ValueError: no backward" and not row["points"] and "rsa" in capsys.readouterr().out
    assert main(["bench", "nope", "--crossover"]) == 2


def test_crossover_knobs_are_ones_that_presets_take() -> None:
    named = {name: crossover.knobs_of(name) for name in crossover.default_presets()}
    assert {preset(name, **knobs).name for name, knobs in named.items()} == set(named)
    assert named["nsa"] == {"block": 64, "k": 16} and named["streaming"] == {} and named["infllm2"]["k"] == 16


def test_every_preset_has_inputs_of_the_settings() -> None:
    """Heads fit one another: those of states that share keys too."""
    for here in (crossover.CPU, replace(crossover.GPU, device="cpu")):
        for name in crossover.default_presets():
            made = compile(preset(name, **crossover.knobs_of(name)), "interpreter")
            made.bind(crossover.inputs_of(made.variant, here, 1024))


def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsec.testing.whole.trained.wrong_on", lambda *_: ["gradient of k is off"])
    (found,) = crossover.crossovers(["streaming"], TINY, rounds=1, report=lambda text: None)
    assert found.length is None and found.points == () and "gradient of k is off" in found.refused


def test_cases_apart_do_not_stop_one_another() -> None:
    said: list[str] = []
    assert (
        rows_apart(["nope", *([] if torch.cuda.is_available() else ["window"])], ["--rounds=1"], 60, said.append) == []
    )
    assert any(line.startswith("nope: the process ended with 2") for line in said)
    if not torch.cuda.is_available():
        assert any(line.startswith("window: failed, ") for line in said)
    assert rows_apart(["window_cpu"], [], 0.2, said.append) == []
    assert said[-1] == "window_cpu: given up after 0.2 s"


def test_a_crossover_goes_on_where_it_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out, ratios = tmp_path / "rows.jsonl", iter([0.5, 1.5])

    def pair(*_: object) -> Pair:
        try:
            return Pair(1.0, r := next(ratios), r, r, r, 1)
        except StopIteration:
            raise AssertionError("a length was timed again") from None

    def cut_off(*_: object) -> Pair:
        (row,) = read_json(out) if out.exists() else ({"unfinished": None},)
        if row["unfinished"]:
            raise KeyboardInterrupt
        return pair()

    monkeypatch.setattr(crossover, "CPU", TINY)
    monkeypatch.setattr(crossover, "time_pair", cut_off)
    words = ["bench", "streaming", "--crossover", "--out", str(out), "--resume"]
    main(words)
    (row,) = read_json(out)
    assert row["unfinished"] and [p["length"] for p in row["points"]] == [64]
    assert "not finished" in crossover.line(row)[-1]
    monkeypatch.setattr(crossover, "time_pair", pair)
    for _ in range(2):
        assert main(words) == 0
        (row,) = read_json(out)
        assert not row["unfinished"] and row["length"] == 128 and [p["length"] for p in row["points"]] == [64, 128]


def test_a_run_goes_on_with_the_cases_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured
) -> None:
    out, run = tmp_path / "rows.jsonl", list[list[str]]()
    shape = crossover.shape_of(crossover.present())
    old: dict[str, object] = {"knobs": {}, "shape": shape, "length": None, "points": [], "refused": ""}
    write_json([{**old, "preset": "nsa"}, {**old, "preset": "hsa", "unfinished": True}], out)

    def stub(words: list[str], limit: float, report: object) -> None:
        run.append(words)
        if "--build-only" not in words:
            path = Path(words[-1].removeprefix("--out="))
            assert ("--resume" in words) is (words[0] == "hsa") is path.exists()
            write_json([{**old, "preset": words[0]}], path)

    monkeypatch.setattr("sparsec.benchmarks.apart.run", stub)
    words = ["bench", "nsa", "moba", "hsa", "--crossover", "--out", str(out), "--resume", "--ahead", "2"]
    assert main(words) == 0
    assert sorted(w[0] for w in run[:2]) == ["hsa", "moba"] and all("--build-only" in w for w in run[:2])
    assert [w[0] for w in run[2:]] == ["moba", "hsa"]
    assert [row["preset"] for row in read_json(out)] == ["nsa", "moba", "hsa"]


def test_rows_of_another_question_are_not_gone_on_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "rows.jsonl"
    monkeypatch.setattr(crossover, "CPU", TINY)
    monkeypatch.setattr(crossover, "time_pair", lambda *_: Pair(1.0, 2.0, 2.0, 2.0, 2.0, 1))
    words = ["bench", "streaming", "--crossover", "--out", str(out), "--resume", "--heads"]
    assert main([*words, "4,2"]) == 0
    rows = read_json(out)
    capsys.readouterr()
    assert main([*words, "2,2"]) == 2 and "H4 HKV2" in capsys.readouterr().err and read_json(out) == rows
    assert main([*words, "4,2"]) == 0 and read_json(out) == rows
    capsys.readouterr()
    assert main(["bench", "hsa", "--events", "--small", "--out", str(out), "--resume"]) == 2
    assert "streaming" in capsys.readouterr().err and read_json(out) == rows


def test_rows_of_a_case_of_another_size_are_not_gone_on_from(tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "rows.jsonl"
    assert main(["bench", "hsa", "--events", "--small", "--out", str(out)]) == 0
    rows = read_json(out)
    capsys.readouterr()
    assert main(["bench", "hsa", "--events", "--out", str(out), "--resume"]) == 2
    assert "hsa" in capsys.readouterr().err and read_json(out) == rows


def test_building_ahead_fills_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured) -> None:
    monkeypatch.setenv("SPARSEC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(crossover, "CPU", TINY)
    assert main(["bench", "streaming", "--crossover", "--build-only"]) == 0
    before = {*(tmp_path / "tvm").rglob("*.so")}
    assert before and "not built" not in capsys.readouterr().out
    next(crossover.crossovers(["streaming"], TINY, rounds=1, report=lambda text: None))
    assert {*(tmp_path / "tvm").rglob("*.so")} == before
    assert main(["bench", "gdn", "--build-only"]) == 0
    assert "gdn: not built ahead" in capsys.readouterr().out or torch.cuda.is_available()


def test_a_crossover_of_other_heads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured) -> None:
    monkeypatch.setattr(crossover, "CPU", TINY)
    monkeypatch.setattr(crossover, "time_pair", lambda *_: Pair(1.0, 2.0, 2.0, 2.0, 2.0, 1))
    assert main(["bench", "streaming", "--crossover", "--heads", "4,2", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["shape"].startswith("B1 H4 HKV2 D16") and found["length"] == 64
    for heads in ("4", "4,3", "0,0", "a,b", "4,2,1"):
        assert main(["bench", "streaming", "--crossover", "--heads", heads]) == 2
        assert "heads" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--trials", "-1"], ["--kernel", "nope"]])
def test_a_tuning_that_is_refused_prints_no_bar(capsys: pytest.CaptureFixture[str], wrong: list[str]) -> None:
    assert main(["tune", "streaming", "window=8", "T=32", "--target", "cpu", *wrong]) == 2
    assert capsys.readouterr().out == ""
