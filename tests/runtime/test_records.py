"""Records of before a field: what they do not say is what the kernel's default has today."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest

from sparsec.lower.registry import default
from sparsec.runtime.records import Record, Records, _digest, record_key, serialise
from sparsec.runtime.target import Target, find
from sparsec.testing.kernels.scan import Setting
from sparsec.tile.schedule import Schedule

SPEC = Setting("delta", "scalar", True, heads=16, state_heads=16, rows=128, cols=128, dtype="bfloat16").grad()


@pytest.fixture
def gpu() -> Target:
    return find("triton:sm_90")


def written(folder: Path, target: Target, schedule: Schedule, without: Collection[str]) -> Records:
    """A folder with a record of a schedule that had fewer fields."""
    records, key = Records(folder), record_key(SPEC, target, 512)
    body = json.loads(serialise(Record("scan", schedule, 1e-3, 2e-3, 7, "tools")))["record"]
    body["schedule"] = {name: value for name, value in body["schedule"].items() if name not in without}
    records.folder.mkdir(parents=True)
    text = json.dumps({"record": body, "sha256": _digest(body)})
    (records.folder / f"{key}.json").write_text(text)
    return records


def test_chunks_of_before_keep_still_keep(tmp_path: Path, gpu: Target) -> None:
    usual = default(SPEC, gpu.name)
    assert usual.keep
    found = written(tmp_path, gpu, replace(usual, stages=1), {"keep"}).best(SPEC, gpu, 512)
    assert found == replace(usual, stages=1)


def test_what_was_written_is_as_it_was(tmp_path: Path, gpu: Target) -> None:
    chosen = replace(default(SPEC, gpu.name), keep=False)
    assert written(tmp_path, gpu, chosen, {"exact"}).best(SPEC, gpu, 512) == chosen


def test_what_asks_something_of_other_fields_stays_off(
    tmp_path: Path, gpu: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loading warp needs tiles of its own size, which an old record does not have."""
    monkeypatch.setattr("sparsec.runtime.records.default", lambda spec, target: Schedule(producer=True, maximum=False))
    old = Schedule(rows=32)
    assert written(tmp_path, gpu, old, {"producer", "maximum"}).best(SPEC, gpu, 512) == old
