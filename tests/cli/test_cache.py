"""`sparsec cache`: it lists what is there, finds what was altered, and clears kernels without losing tuned results."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from sparsec.cli import machine, main
from sparsec.runtime.records import Record, Records
from sparsec.tile.schedule import Schedule

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one entry of each kind."""
    monkeypatch.setenv("SPARSEC_CACHE_DIR", str(tmp_path))
    Records(tmp_path).write("ab" * 16, Record("attend_out", Schedule(rows=32), 1e-3, 2e-3, 7, "a toolchain"))
    (tmp_path / "tvm").mkdir()
    digest = hashlib.sha256(b"code").hexdigest()[:16]
    (tmp_path / "tvm" / f"k_{digest}.so").write_bytes(b"code")
    (tmp_path / "triton").mkdir()
    digest = hashlib.sha256(b"def f(): ...").hexdigest()[:16]
    (tmp_path / "triton" / f"attend_out_{digest}.py").write_text("def f(): ...")
    with sqlite3.connect(tmp_path / "trials.db") as database:
        database.execute("create table t (x)")
    return tmp_path


def said(capsys: Captured, *words: str, code: int = 0) -> Any:
    """A command's JSON."""
    assert main(["cache", *words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_list(folder: Path, capsys: Captured) -> None:
    found = {entry["kind"]: entry for entry in said(capsys, "list")}
    assert set(found) == {"record", "library", "source", "trials"}
    assert "2.00 times the default, 7 trials" in found["record"]["what"]
    assert found["library"]["bytes"] == 4


def test_an_intact_cache_verifies(folder: Path, capsys: Captured) -> None:
    assert said(capsys, "verify") == {"checked": 4, "corrupt": []}
    assert machine.cache().state == "ok" and machine.cache().finding.endswith("intact")


SPOIL = {
    "record": lambda folder: next((folder / "records").glob("*.json")),
    "library": lambda folder: next((folder / "tvm").glob("*.so")),
    "source": lambda folder: next((folder / "triton").glob("*.py")),
    "trials": lambda folder: folder / "trials.db",
}


@pytest.mark.parametrize("kind", SPOIL)
def test_what_was_altered_is_found(folder: Path, capsys: Captured, kind: str) -> None:
    path = SPOIL[kind](folder)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"32", b"64") if kind == "record" else b"spoiled" + content[7:])
    found = said(capsys, "verify", code=1)["corrupt"]
    assert [Path(entry["file"]).stem for entry in found] == [path.stem] and found[0]["problem"]
    assert main(["cache", "verify"]) == 1 and "3 of 4 entries are intact" in capsys.readouterr().out
    assert machine.cache().state == "warn" and "1 corrupt: `sparsec cache verify`" in machine.cache().finding


@pytest.mark.parametrize("kind", SPOIL)
def test_bytes_that_are_no_text_are_found(folder: Path, capsys: Captured, kind: str) -> None:
    SPOIL[kind](folder).write_bytes(b"\xff\xfe\x80")
    assert len(said(capsys, "verify", code=1)["corrupt"]) == 1


def signed(body: object) -> str:
    """A record's file with the right hash, whatever it holds."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({"record": body, "sha256": digest})


GOOD = {"kernel": "k", "time_s": 1.0, "default_s": 2.0, "trials": 3, "toolchain": "t"}
STRANGE = {
    "no text": b"\xff\xfe",
    "a list": b"[1]",
    "a schedule that is a list": signed({**GOOD, "schedule": [1]}).encode(),
    "no schedule": signed(GOOD).encode(),
    "a field too many": signed({**GOOD, "schedule": {}, "other": 1}).encode(),
    "a record that is a list": signed([1]).encode(),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_strange_records_are_set_aside(tmp_path: Path, kind: str) -> None:
    records = Records(tmp_path)
    records.folder.mkdir()
    (records.folder / "x.json").write_bytes(STRANGE[kind])
    assert records.read("x") is None and [p.name for p in records.folder.iterdir()] == ["x.corrupt"]


def test_a_record_of_an_older_schedule_is_read(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.folder.mkdir()
    (records.folder / "x.json").write_text(signed({**GOOD, "schedule": {"rows": 32, "gone": 1}}))
    found = records.read("x")
    assert found is not None and found.schedule == Schedule(rows=32)


def test_clear_keeps_what_was_tuned(folder: Path, capsys: Captured) -> None:
    assert said(capsys, "clear", "--yes")["deleted"] == ["tvm", "triton"]
    assert {entry["kind"] for entry in said(capsys, "list")} == {"record", "trials"}
    assert said(capsys, "clear", "--records", "--yes")["deleted"] == ["records", "trials.db"]
    assert said(capsys, "list") == []


@pytest.mark.parametrize("words", [[], ["--records"]])
def test_json_deletes_nothing_unasked(folder: Path, capsys: Captured, words: list[str]) -> None:
    assert main(["cache", "clear", *words, "--json"]) == 2 and "--yes" in capsys.readouterr().err
    assert len(said(capsys, "list")) == 4


def test_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("SPARSEC_CACHE_DIR", str(tmp_path / "none"))
    assert said(capsys, "list") == [] and said(capsys, "verify")["checked"] == 0
    assert said(capsys, "clear", "--yes")["deleted"] == [] and not (tmp_path / "none").exists()


def test_a_real_kernel_is_rebuilt_where_it_was_altered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("SPARSEC_CACHE_DIR", str(tmp_path))
    window = ["check", "streaming", "window=4", "T=9", "D=16", "DV=16", "--target", "cpu"]
    assert main(window) == 0
    (library,) = (tmp_path / "tvm").glob("*.so")
    library.unlink()  # the old file is mapped by this process: leave its bytes alone
    library.write_bytes(b"spoiled")
    assert len(said_after(capsys, "verify", 1)["corrupt"]) == 1
    assert main(window) == 0
    assert said_after(capsys, "verify", 0)["corrupt"] == []


def said_after(capsys: Captured, word: str, code: int) -> Any:
    """A command's JSON, without what was printed before."""
    capsys.readouterr()
    return said(capsys, word, code=code)
