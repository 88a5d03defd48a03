"""`sparsec check`: what it says, the lengths that it takes, its exit code."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sparsec.cli import main

Captured = pytest.CaptureFixture[str]
WINDOW = ["streaming", "window=8", "sinks=2"]


def said(capsys: Captured, *words: str, code: int = 0) -> str:
    """What a check prints; its exit code must be as expected."""
    assert main(["check", *words]) == code, capsys.readouterr().err
    return capsys.readouterr().out


def found_in(capsys: Captured, *words: str) -> Any:
    """A check's JSON."""
    return json.loads(said(capsys, *words, "--json"))


def test_check_agrees_and_says_what_was_compared(capsys: Captured) -> None:
    out = said(capsys, *WINDOW, "T=19", "D=16", "DV=16")
    assert "is right on interpreter" in out and "graph = text" in out and "attend_out" in out
    found = found_in(capsys, *WINDOW, "T=19", "D=16", "DV=16")
    assert found["ok"] and [link["lower"] for link in found["links"]][-1] == "outputs on interpreter"


def test_check_says_where_a_size_leaves_nothing_out(capsys: Captured) -> None:
    assert "no choice to the test" not in said(capsys, *WINDOW, "T=19", "D=16", "DV=16")
    assert "every query sees all earlier tokens" in said(capsys, "streaming", "T=19", "D=16", "DV=16")
    found = found_in(capsys, "dsa", "T=19", "D=16", "DV=16")
    assert found["note"].startswith("these dims put no choice to the test: `chosen` takes up to 2048 of 19")
    assert found_in(capsys, "dsa", "k=4", "T=19", "D=16", "DV=16")["note"] == ""


def test_check_takes_a_length_at_which_choices_leave_something_out(capsys: Captured) -> None:
    small = ["H=2", "HKV=1", "D=16", "DV=16"]
    found = found_in(capsys, "moba", "block=32", "k=4", *small)
    assert found["ok"] and found["dims"]["TQ"] == 131 and found["note"] == ""
    asked = found_in(capsys, "moba", "block=32", "k=4", "T=40", *small)
    assert asked["dims"]["TQ"] == 40 and "`" in asked["note"]


def test_check_fails_with_1(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsec.tile import interpreter

    honest = interpreter.interpret

    def forgetful(program: Any, tensors: Any, *rest: Any) -> None:
        honest(program, tensors, *rest)
        list(tensors.values())[-1][:, -1] *= 1.01

    monkeypatch.setattr(interpreter, "interpret", forgetful)
    out = said(capsys, *WINDOW, "T=19", "D=16", "DV=16", code=1)
    assert "is WRONG on interpreter" in out and "first at attend_out" in out
