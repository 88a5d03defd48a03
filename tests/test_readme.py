"""What the README shows runs as it is shown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsec.cli import main

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()
COMMANDS = [line.split("#")[0] for line in TEXT.splitlines() if line.startswith(".venv/bin/sparsec")]
LONG = ("tune", "check")  # run by their own tests


def test_the_declaration_runs_and_is_right(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    file = tmp_path / "readme.py"
    file.write_text(code)  # the tracer reads the source of lambdas
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(code, str(file), "exec"), names)
    assert capsys.readouterr().out.startswith("within the bounds of float32 o")
    assert all(float(x.grad.abs().sum()) > 0 for x in names["x"].values())


def test_the_page_on_states_runs_and_is_right(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = (ROOT / "docs/states.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0].replace('"auto"', '"interpreter"')
    file = tmp_path / "states.py"
    file.write_text(code)
    names: dict[str, Any] = {"__name__": "states"}
    exec(compile(code, str(file), "exec"), names)
    assert capsys.readouterr().out.startswith("within the bounds of float32 o")
    assert all(float(x.grad.abs().sum()) > 0 for x in names["x"].values())
    whole = names["layer"](**{name: x.detach() for name, x in names["x"].items()})
    assert torch.allclose(names["out"], whole[:, 69:], atol=1e-5)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_accepted(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(command)[1:]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    if words[0] in LONG:
        words = ["show", *(w for w in words[1:] if not w.startswith("--") and not w.isdigit())]
    if "--target" not in words and words[0] in ("compile", "show"):
        words += ["--target", "cpu"]
    assert main(words) == 0
    assert capsys.readouterr().out.strip()


def test_paths_exist() -> None:
    named = set(re.findall(r"`((?:sparsec|frontends|backends|autotune|examples)/[\w./]+)`", TEXT))
    named |= set(re.findall(r"\]\(([\w./]+)\)", TEXT))
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_it_stays_short() -> None:
    assert len(TEXT.splitlines()) < 150
