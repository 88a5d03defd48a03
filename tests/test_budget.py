"""A run of tests with a time limit: what it leaves out, what it remembers, and what a later run does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import time, pytest

def test_good(): time.sleep(0.3)
def test_wrong(): assert 1 == 2, "wrong"
def test_refused(): pytest.skip("needs a GPU")
def test_teardown(broken): pass

@pytest.fixture
def broken():
    yield
    raise ValueError("late")
"""


def run(folder: Path, *words: str) -> tuple[str, list[dict[str, str]]]:
    """The last line of a run, and the lines of its file."""
    done = folder / "done.jsonl"
    command = [sys.executable, "-m", "pytest", "-p", "sparsec.testing.budget", f"--done={done}", *words, "test_it.py"]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    lines = [json.loads(line) for line in done.read_text().splitlines()] if done.exists() else []
    return said.stdout.splitlines()[-1], lines


@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_passed_is_not_run_again(tmp_path: Path, workers: str) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    last, lines = run(tmp_path, "-n", workers)
    assert "1 failed, 2 passed, 1 skipped, 1 error" in last
    found = {(line["test"].partition("::")[2], line["outcome"]): line["why"] for line in lines}
    assert found["test_good", "passed"] == "" and "wrong" in found["test_wrong", "failed"]
    assert "needs a GPU" in found["test_refused", "skipped"] and "late" in found["test_teardown", "failed"]
    last, more = run(tmp_path, "-n", workers)
    assert "1 failed, 1 passed, 2 skipped, 1 error" in last  # the broken teardown counts as no pass
    assert len(more) == 2 * len(lines) - 1 and more[: len(lines)] == lines


def test_the_rest_is_skipped_when_the_time_is_over(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    last, lines = run(tmp_path, "--budget=0.2", "-n", "0")
    assert "1 passed, 3 skipped" in last and [line["outcome"] for line in lines] == ["passed"]
    (tmp_path / "done.jsonl").open("a").write('{"test": "test_it.py::test_wro')  # cut off
    command = [sys.executable, "-m", "pytest", "-p", "sparsec.testing.budget", "-rs", "--done=done.jsonl", "test_it.py"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120).stdout
    assert "passed before" in said and "1 failed, 1 passed, 2 skipped" in said
