"""Kernels timed by a stopwatch: a stub's laps are handed to the right kernels, and whole rows are kept and shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from sparsec.benchmarks import events, laps, resources
from sparsec.benchmarks.groups import small
from sparsec.benchmarks.halves import halves
from sparsec.benchmarks.own import compiled_for, own
from sparsec.benchmarks.registry import CASES
from sparsec.benchmarks.row import read_json, write_json
from sparsec.cli import main

Runs = Sequence[Callable[[], object]]
MB = 1e6


class Stub:
    """Runs what it is given, and says 1, 2, 4 … ms, twice as much in every second round."""

    def __init__(self) -> None:
        self.rounds = 0

    def __call__(self, runs: Runs) -> list[float]:
        self.rounds += 1
        for run in runs:
            run()
        return [float(2**n * (1 + self.rounds % 2)) for n in range(len(runs))]


def test_laps_go_to_the_kernels_that_were_launched() -> None:
    case, stub = small(CASES["gdn_train"]), Stub()
    with torch.no_grad():
        parts = halves(case, compiled_for(case), case.inputs())
    programs = [name for half in parts for _, own_programs in half.kernels for name, _ in own_programs]
    found = list(events.times(parts, stub, 4, 1e9))
    assert stub.rounds == 5 and [k.half for k in found] == ["forward", "backward"]
    assert [name for k in found for name in k.programs] == programs
    # rounds 2 to 5 say 1, 2, 1, 2 times a power of two: the median is 1.5 times it
    assert sum(k.ms for k in found) == 1.5 * (2 ** len(programs) - 1)
    for k in found:
        assert k.ms == sum(k.programs.values()) and k.share == pytest.approx(k.nbytes / 1e9 / (k.ms * 1e-3))


def test_a_forward_must_move_its_tensors_once() -> None:
    case = small(CASES["window"])
    with torch.no_grad():
        (half,) = halves(case, compiled_for(case), case.inputs())
    ((kernel, _),) = half.kernels
    assert events.least_bytes(kernel, half.dims) == case.least_bytes


@pytest.mark.parametrize("name", ["hsa", "selected_t8192_random_train", "selector_128k", "nsa_t8192_train"])
def test_launches_that_are_timed_make_what_the_call_makes(name: str) -> None:
    case = small(CASES[name])
    inputs = case.inputs()
    with torch.no_grad():
        forward, *_ = halves(case, compiled_for(case), inputs)
        for buffer, x in forward.held[0].items():
            if buffer not in inputs and x.is_floating_point():
                x.fill_(torch.nan)  # a launch that is missing leaves it
        for _, launches in forward.kernels:
            for _, run in launches:
                run()
    wanted = own(case, inputs, 0)().detach()
    alike = [x for x in forward.held[0].values() if x.shape == wanted.shape and x.dtype == wanted.dtype]
    assert any(torch.equal(x, wanted) for x in alike)


def test_a_wrong_case_gets_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(events, "checked", lambda *_: (None, {}, "error 1"))
    assert list(events.event_rows(["gdn"], as_small=True, laps=Stub(), report=said.append)) == []
    assert said == ["gdn: refused, error 1"]


def test_the_command_shows_every_kernel_and_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    assert main(["bench", "hsa", "--events", "--small", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "forward select_chosen" in shown and "forward attend_far" in shown and "a whole call" in shown
    (row,) = read_json(out)
    assert row["sum_ms"] == pytest.approx(sum(k["ms"] for k in row["kernels"])) and row["error"] < 1e-4
    assert main(["bench", "hsa", "--events", "--small", "--out", str(out), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [row]
    assert main(["bench", "hsa", "--events", "--crossover"]) == 2 and main(["bench", "hsa", "--resume"]) == 2


def test_rows_are_lines_where_the_file_says_so(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"case": "a"}, {"case": "b", "text": "two\nlines"}]
    for name in ("rows.jsonl", "rows.json"):
        write_json(rows, tmp_path / name)
        assert read_json(tmp_path / name) == rows
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2 == len([*tmp_path.iterdir()])


def test_the_wall_clock_times_each_launch() -> None:
    made: list[int] = []
    found = laps.median_laps(laps.laps_by_wall, [lambda: made.append(0), lambda: made.append(1)], 3)
    assert made == [0, 1] * 4 and len(found) == 2 and min(found) >= 0


def test_spills_are_told_and_kept(tmp_path: Path) -> None:
    asked: list[str] = []

    def stub(name: str) -> list[resources.Made]:
        asked.append(name)
        needs = {"registers": 255, "shared": 10, "wgmma": True}
        return [
            {"kernel": "k", "program": "a", "spills": 0, **needs},
            {"kernel": "k", "program": "b", "spills": 8, **needs},
        ]

    out, said = tmp_path / "rows.jsonl", list[object]()
    for _ in range(2):
        (row,) = resources.survey(["gdn"], stub, out, said.append, "triton:sm_90")
    assert asked == ["gdn"] and read_json(out) == [row] and len(said) == 2
    assert resources.lines("gdn", row["programs"], spilled=True) == [
        "gdn: 2 programs, 1 spill",
        "  b: 255 registers, 10 bytes shared, 8 bytes spilled",
    ]


def test_programs_of_another_target_are_not_taken_over(tmp_path: Path) -> None:
    out, asked = tmp_path / "rows.jsonl", list[str]()

    def stub(name: str) -> list[resources.Made]:
        asked.append(name)
        return []

    for target in ("triton:sm_90", "triton:sm_80", "triton:sm_90"):
        (row,) = resources.survey(["gdn"], stub, out, lambda row: None, target)
        assert row["of"] == target
    assert asked == ["gdn"] * 2 and [row["of"] for row in read_json(out)] == ["triton:sm_90", "triton:sm_80"]


@pytest.mark.gpu
def test_events_add_up_to_the_call() -> None:
    (row,) = events.event_rows(["gdn_train"], rounds=5, report=lambda text: None)
    assert len(row.kernels) >= 2 and 0.7 < row.sum_ms / row.whole_ms < 1.3
