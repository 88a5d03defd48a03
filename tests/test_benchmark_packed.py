"""Packed documents are compared with each by itself before they are timed, and rows are kept as they come."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsec.benchmarks import packed
from sparsec.benchmarks.groups import small
from sparsec.benchmarks.registry import CASES
from sparsec.benchmarks.row import read_json, write_json
from sparsec.benchmarks.verdict import LIMITS


def test_lengths_are_read() -> None:
    assert packed.lengths_of("1024x2,100") == [1024, 1024, 100] and packed.lengths_of("5") == [5]


def test_a_line_per_case_and_lengths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "clock_for", lambda device: lambda run, *_: float(run() is not None))
    words = ["gdn", "--small", "--lengths", "20x2,9", "30", "--out", str(tmp_path / "rows.jsonl")]
    assert packed.main(words) == 0
    rows = read_json(tmp_path / "rows.jsonl")
    assert [row["lengths"] for row in rows] == ["20x2,9", "30"] and "gdn 20x2,9: forward" in capsys.readouterr().out
    assert all(row["both_ms"] == row["one_forward_ms"] == 1.0 and row["error"] < 1e-5 for row in rows)
    assert packed.main(words) == 0 and not capsys.readouterr().out


def test_rows_of_other_hardware_are_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "rows.jsonl"
    monkeypatch.setattr(packed, "clock_for", lambda device: lambda run, *_: 1.0)
    words = ["gdn", "--small", "--lengths", "20", "--out", str(out)]
    assert packed.main(words) == 0
    (row,) = read_json(out)
    write_json([{**row, "hardware": {**row["hardware"], "gpu": "another"}}], out)
    assert packed.main(words) == 0 and len(read_json(out)) == 2
    assert packed.main(words) == 0 and len(read_json(out)) == 2


def test_documents_that_read_one_another_are_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One long sequence in place of documents is told apart, in its output and in gradients."""
    monkeypatch.setattr(packed.Documents, "packed", lambda docs, leaves: docs.one(leaves)[0])
    case = small(CASES["gdn"])
    with pytest.raises(ValueError, match=r"gradient|output|k: "):
        packed.row(case, "20x2")
    assert packed.main(["gdn", "--small", "--lengths", "20x2"]) == 1 and "ValueError" in capsys.readouterr().out
    limits = packed.wrong(case, 1.0, dict.fromkeys(case.learned, 0.0))
    assert limits == [f"output: 1.0e+00 of {LIMITS[torch.float32]:.1e}"]
