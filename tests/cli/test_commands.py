"""Every command: what it prints, its JSON, its exit code; in this process, interpreted or without running."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sparsec.cli import main
from sparsec.ir.error import DeclarationError
from sparsec.passes.pipeline import PIPELINE

Captured = pytest.CaptureFixture[str]
WINDOW = ["streaming", "window=8", "sinks=2"]


def run(capsys: Captured, *words: str, code: int = 0) -> str:
    """What a command prints; its exit code must be as expected."""
    assert main(words) == code, capsys.readouterr().err
    return capsys.readouterr().out


def value(capsys: Captured, *words: str, code: int = 0) -> Any:
    """A command's JSON."""
    return json.loads(run(capsys, *words, "--json", code=code))


def test_help_names_every_command(capsys: Captured) -> None:
    out = run(capsys, "--help")
    for command in ("list", "show", "check", "explain", "compile", "tune", "bench", "cache", "doctor"):
        assert f"\n  {command} " in out
        assert "--json" in run(capsys, command, *(["list"] if command == "cache" else []), "--help")


def test_list(capsys: Captured) -> None:
    assert "streaming" in run(capsys, "list")
    assert {p["name"] for p in value(capsys, "list")} >= {"full", "hsa", "nsa", "moba", "infllm2"}
    (hsa,) = value(capsys, "list", "hsa")
    assert {k["name"]: k["default"] for k in hsa["knobs"]}["chunk"] == 64
    assert "tokens per chunk" in run(capsys, "list", "hsa")


def test_show_graph_parses_back(capsys: Captured) -> None:
    from sparsec.frontends.preset import preset
    from sparsec.frontends.text import parse

    text = run(capsys, "show", "hsa", "chunk=16", "k=3")
    assert parse(text).outputs == preset("hsa", chunk=16, k=3).outputs


def test_text_is_read_from_standard_input(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sparsec show hsa chunk=16 | sparsec show - --level plan`."""
    text = run(capsys, "show", *WINDOW)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert run(capsys, "show", "-") == text.partition("\n")[2]  # all but the line that names preset and knobs
    monkeypatch.setattr("sys.stdin", io.StringIO("variant f("))
    assert main(["show", "-"]) == 2
    assert "<stdin>:1" in capsys.readouterr().err
    assert main(["show", "-", "window=8"]) == 2
    assert "only presets have knobs" in capsys.readouterr().err


@pytest.mark.parametrize("level", ["graph", "plan"])
def test_show_refuses_a_dtype_that_no_kernel_has(capsys: Captured, level: str) -> None:
    assert main(["show", *WINDOW, "--level", level, "--dtype", "float64"]) == 2
    assert "kernels take float32, float16, bfloat16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("passes", "return out"),
        ("plan", "TiledAttention(q, k, v) -> out"),
        ("tile", "program attend_out"),
        ("source", "tl.warp_specialize"),
    ],
)
def test_show_levels(capsys: Captured, level: str, expected: str) -> None:
    assert expected in run(capsys, "show", *WINDOW, "--level", level, "--target", "triton:sm_90")
    parts = value(capsys, "show", *WINDOW, "--level", level, "--target", "triton:sm_90")["parts"]
    assert any(expected in text for text in parts.values())


@pytest.mark.parametrize("level", [["--level", "graph"], ["--level", "plan"], ["--passes"]])
@pytest.mark.parametrize(
    "wrong", [["--target", "triton:sm_12"], ["--kernel", "nope"], ["WIDTH=3"], ["H=5", "HKV=2"]], ids=" ".join
)
def test_show_refuses_what_no_level_has(capsys: Captured, level: list[str], wrong: list[str]) -> None:
    assert main(["show", *WINDOW, *level, *wrong]) == 2
    out = capsys.readouterr()
    assert out.out == "" and "Traceback" not in out.err


def test_show_passes_is_a_diff(capsys: Captured) -> None:
    out = run(capsys, "show", "hsa", "weights=softmax", "--passes")
    assert "+++ after normalise_selections" in out and "order = score" in out
    named = [p["pass"] for p in value(capsys, "show", *WINDOW, "--passes")]
    assert named == [step.__name__ for step in PIPELINE] and "canonicalise" in named


def test_show_one_kernel(capsys: Captured) -> None:
    whole = run(capsys, "show", "hsa", "--level", "tile", "-t", "interpreter")
    one = run(capsys, "show", "hsa", "--level", "tile", "-t", "interpreter", "--kernel", "select_chosen")
    assert one.strip() in whole and len(one) < len(whole)
    assert main(["show", "hsa", "--level", "tile", "--kernel", "select_chosn"]) == 2
    assert "did you mean `select_chosen`" in capsys.readouterr().err


LAYER = """
from __future__ import annotations

from dataclasses import dataclass

import sparsec


@dataclass
class Knobs:
    window: int = 4


near = sparsec.preset("streaming", window=Knobs().window)
"""


def test_a_file_of_python_may_have_dataclasses(capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "layer.py").write_text(LAYER)
    assert "variant streaming" in run(capsys, "show", str(tmp_path / "layer.py"))


@pytest.mark.parametrize("size", ["²", "99999999999", "-1", "1e3", "9" * 5000, ""])
def test_sizes_that_are_none(capsys: Captured, size: str) -> None:
    assert main(["explain", *WINDOW, f"T={size}"]) == 2
    assert "a dim is a whole number from 0 to 2147483647" in capsys.readouterr().err


def test_too_large_for_this_machine_is_a_sentence(capsys: Captured) -> None:
    assert main(["check", *WINDOW, "T=2147483647", "D=4096", "H=4096"]) == 2
    assert "too large for this machine" in capsys.readouterr().err


def test_compile_as_json_has_the_source(capsys: Captured, tmp_path: Path) -> None:
    said = value(capsys, "compile", *WINDOW, "--target", "tvm:llvm")
    assert said["file"] is None and "def run(" in said["source"]
    said = value(capsys, "compile", *WINDOW, "--target", "tvm:llvm", "--out", str(tmp_path / "x.py"))
    assert said["file"] == str(tmp_path / "x.py") and "source" not in said


def test_compile_writes_through_links_and_devices(capsys: Captured, tmp_path: Path) -> None:
    words = ["compile", *WINDOW, "D=32", "DV=32", "--target", "tvm:llvm", "--out"]
    target, link, pipe = tmp_path / "target.py", tmp_path / "link.py", tmp_path / "pipe"
    link.symlink_to(target)
    run(capsys, *words, str(link))
    assert link.is_symlink() and "def self_check" in target.read_text()
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True)
    run(capsys, *words, str(pipe))
    assert reader.communicate(timeout=60)[0] == target.read_text() and pipe.is_fifo()


def test_compile_into_no_folder_says_what_to_do(capsys: Captured, tmp_path: Path) -> None:
    assert main(["compile", *WINDOW, "--target", "tvm:llvm", "--out", str(tmp_path / "no" / "x.py")]) == 2
    err = capsys.readouterr().err
    assert f"--out: {tmp_path}/no: there is no such folder" in err and f"mkdir -p {tmp_path}/no" in err


@pytest.mark.parametrize("words", [["explain", *WINDOW], ["show", *WINDOW, "--level", "plan"], ["check", *WINDOW]])
def test_heads_that_no_call_may_have(capsys: Captured, words: list[str]) -> None:
    assert main([*words, "H=5", "HKV=2", "--target", "interpreter"]) == 2
    assert "H must be divisible by HKV" in capsys.readouterr().err


BROKEN = {
    "import": ("import sparsec\nimport no_such_package\n", "line 2: ModuleNotFoundError: No module named"),
    "name": ("import sparsec\n\nx = nothing\n", "line 3: NameError: name 'nothing' is not defined"),
    "syntax": ("import sparsec\nx = = 1\n", "line 2: SyntaxError"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_does_not_run_is_a_sentence(capsys: Captured, tmp_path: Path, kind: str) -> None:
    text, said = BROKEN[kind]
    (tmp_path / "mine.py").write_text(text)
    assert main(["show", f"{tmp_path}/mine.py"]) == 2
    err = capsys.readouterr().err
    assert f"{tmp_path}/mine.py, {said}" in err and len(err.splitlines()) == 1
    with pytest.raises(DeclarationError) as caught:
        main(["show", f"{tmp_path}/mine.py", "--traceback"])
    assert caught.value.__cause__ is not None


def test_a_file_may_import_what_lies_beside_it(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside_mine.py").write_text("SIZE = 24\n")
    text = "import sparsec\nfrom beside_mine import SIZE\nmine = sparsec.preset('streaming', window=SIZE)\n"
    (tmp_path / "mine.py").write_text(text)
    before = [*sys.path]
    assert "24" in run(capsys, "show", f"{tmp_path}/mine.py:mine")
    assert sys.path == [*before, str(tmp_path)]
    del sys.modules["beside_mine"]


def test_two_variants_in_one_command_are_refused(capsys: Captured) -> None:
    assert main(["check", "hsa", "nsa"]) == 2
    assert "one variant at a time. Fix: run the command again for nsa" in capsys.readouterr().err


def test_a_fault_beyond_the_file_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import json\njson.loads('{')\n")
    with pytest.raises(json.JSONDecodeError):
        main(["show", f"{tmp_path}/mine.py"])


def test_explain_prints_what_one_order_costs(capsys: Captured) -> None:
    words = ("nsa", "selection=given", "branches=slc", "T=512", "--target", "triton:sm_90", "--no-resources")
    out = run(capsys, "explain", *words, "--gradients")
    assert "torch.use_deterministic_algorithms(True)" in out and "costs nothing: every sum has one order" in out
    assert "by atomic additions (predicted); it runs in one order anyway" in out
    (price,) = value(capsys, "explain", *words, "--gradients")["order"]
    assert price["atomic_s"] > 0 and price["ordered_s"] > 0 and not price["measured"] and not price["atomic_runs"]


def test_explain_has_formulas_and_numbers(capsys: Captured) -> None:
    out = run(capsys, "explain", "streaming", "window=512", "sinks=64", "T=4096", "H=8", "HKV=8")
    assert "2*B*H*TQ*(D + DV)*(Min(64, TK) + Min(512, TK)) = 4.83 GFLOP" in out
    assert re.search(r"x 8 x B = \d+ x 8 x 1\n", out)
    assert "predicted ms" in out and "offsets int32" in out and "peak of all else 8.39 MB" in out
    assert "small defaults" not in out and "small defaults" in run(capsys, "explain", "gla", "--no-resources")
    found = value(capsys, "explain", "nsa", "T=4096", "--target", "triton:sm_90", "--no-resources")
    assert found["target"] == "triton:sm_90" and found["seconds"] > 0
    assert {k["kind"] for k in found["kernels"]} == {
        "Summarise",
        "TiledAttention",
        "Selector",
        "GatheredAttention",
        "Combine",
    }


def test_doctor(capsys: Captured) -> None:
    found = {f["subject"]: f for f in value(capsys, "doctor")}
    assert {"machine", "packages", "GPU", "targets", "CPU kernels", "Triton", "miscompiles", "cache"} == set(found)
    assert found["cache"]["state"] == "ok"
    assert "torch" in run(capsys, "doctor")


def test_doctor_sees_a_cache_that_cannot_be_written(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSEC_CACHE_DIR", str(tmp_path / "file" / "cache"))
    found = {f["subject"]: f for f in value(capsys, "doctor")}
    assert found["cache"]["state"] == "warn" and "which is a file" in found["cache"]["finding"]


@pytest.mark.parametrize(
    ("triton", "hopper", "state"),
    [("3.6.0", True, "warn"), ("3.6.0", False, "ok"), ("3.9.0", True, "ok"), ("3.7.1", True, "ok")],
)
def test_doctor_knows_the_miscompiles(monkeypatch: pytest.MonkeyPatch, triton: str, hopper: bool, state: str) -> None:
    import torch

    from sparsec.cli import machine

    monkeypatch.setattr(machine, "installed", lambda name: triton)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: hopper)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert machine.miscompiles().state == state


def test_variants_from_files(capsys: Captured, tmp_path: Path) -> None:
    text = run(capsys, "show", *WINDOW)
    (tmp_path / "mine.sparsec").write_text(text)
    assert run(capsys, "show", str(tmp_path / "mine.sparsec")) == text.split("\n", 1)[1]
    (tmp_path / "mine.py").write_text("import sparsec\nlocal = sparsec.preset('streaming', window=8, sinks=2)\n")
    assert run(capsys, "show", f"{tmp_path}/mine.py:local") == text
    assert run(capsys, "show", f"{tmp_path}/mine.py") == text


def test_module_runs() -> None:
    done = subprocess.run([sys.executable, "-m", "sparsec", "list", "nsaa"], capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean `nsa`" in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "sparsec", "list", "nsaa", "--traceback"], capture_output=True, text=True
    )
    assert done.returncode != 0 and "Traceback" in done.stderr
