"""The trial database after kills and damage."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from sparsec.autotune.space import Space
from sparsec.autotune.study import Study
from sparsec.autotune.trial import Built, Trial, TuneError, trial_from
from sparsec.tile.schedule import Schedule

SPACE_CHOICES: dict[str, tuple[object, ...]] = {"rows": (16, 32, 64), "lanes": (("m",), ("n", "e"), ("m", "e", "n"))}
SPACE = Space(Schedule(), SPACE_CHOICES)


def states(path: Path) -> list[str]:
    with sqlite3.connect(path) as db:
        return [row[0] for row in db.execute("select state from trials")]


def test_the_default_is_in_the_space() -> None:
    assert SPACE.schedule(SPACE.params(Schedule())) == Schedule()
    assert Space(Schedule(rows=48), {"rows": (16, 32)}).size == 3
    assert {SPACE.schedule(p) for p in SPACE.configurations()} >= {Schedule(rows=16, lanes=("n", "e"))}


def test_trials_of_an_older_version_are_read() -> None:
    data = json.loads(Trial(3, Schedule(rows=32), "timed", ratio=0.5, built=Built(1.0, 40)).to_json())
    data["schedule"]["gone"], data["built"]["gone"], data["gone"] = 1, 2, 3
    found = trial_from(json.dumps(data))
    assert found == Trial(3, Schedule(rows=32), "timed", ratio=0.5, built=Built(1.0, 40))


def test_another_space_is_another_study() -> None:
    assert SPACE.digest == Space(Schedule(), {"rows": (16, 32, 64), "lanes": (("m",), ("n", "e"))}).digest
    assert SPACE.digest != Space(Schedule(), {"rows": (16, 32, 64), "lanes": (("m",), ("e", "n"))}).digest
    assert SPACE.digest != Space(Schedule(stages=1), SPACE_CHOICES).digest


def test_what_a_kill_left_open_is_closed_and_may_be_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "trials.db"
    dead = Study(path, "k", SPACE)
    asked = dead.ask(Schedule())
    assert asked is not None and states(path) == ["RUNNING"]
    del dead
    study = Study(path, "k", SPACE)
    assert states(path) == ["FAIL"] and study.closed == 1
    (lost,) = study.trials()
    assert lost.state == "lost" and lost.schedule == Schedule() and "killed" in lost.reason
    again = study.ask(Schedule())
    assert again is not None and again[1] == Schedule()


def test_a_kernel_that_killed_the_tuner_twice_is_not_run_a_third_time(tmp_path: Path) -> None:
    path = tmp_path / "trials.db"
    for _ in range(2):
        study = Study(path, "k", SPACE)
        asked = study.ask(Schedule(rows=16))
        assert asked is not None
        study.start(asked[0])
    study = Study(path, "k", SPACE)
    assert [t.state for t in study.trials()] == ["lost", "rejected"]
    rest = [study.ask() for _ in range(SPACE.size)]
    assert rest[-1] is None and Schedule(rows=16) not in {found[1] for found in rest if found}


def test_a_verdict_that_was_written_before_the_kill_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "trials.db"
    dead = Study(path, "k", SPACE)
    asked = dead.ask()
    assert asked is not None
    row = Trial(asked[0], asked[1], "timed", ratio=0.5, seconds=1.0, won=True)
    dead._open[asked[0]].set_user_attr("trial", row.to_json())
    study = Study(path, "k", SPACE)
    assert study.trials() == [row] and states(path) == ["COMPLETE"]


def test_studies_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "trials.db"
    one = Study(path, "one", SPACE)
    asked = one.ask(Schedule())
    assert asked is not None
    assert Study(path, "two", SPACE).trials() == [] and states(path) == ["RUNNING"]


@pytest.mark.parametrize("damage", [b"this is no database at all" * 100, b"SQLite format 3\0" + bytes(4000)])
def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "trials.db"
    path.write_bytes(damage)
    assert Study(path, "k", SPACE).ask(Schedule()) is not None
    assert (tmp_path / "trials.corrupt").read_bytes() == damage


def test_proposals_learn() -> None:
    space = Space(Schedule(), {"rows": (16, 32, 64, 128), "block": (16, 32, 64, 128), "warps": (1, 2, 4, 8)})
    study = Study(None, "k", space, seed=1)
    for _ in range(40):
        asked = study.ask()
        assert asked is not None
        number, s = asked
        study.tell(
            Trial(number, s, "timed", ratio=abs(s.rows - 128) + abs(s.block - 32) + abs(s.warps - 8), seconds=1.0)
        )
    late = [t.ratio for t in study.trials()[20:] if t.ratio is not None]
    early = [t.ratio for t in study.trials()[:10] if t.ratio is not None]
    assert sum(late) / len(late) < sum(early) / len(early)


def test_a_database_that_another_process_holds_is_no_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Setting it aside would lose what that process writes."""
    monkeypatch.setattr("sparsec.autotune.study.BUSY_S", 0.1)
    path = tmp_path / "trials.db"
    with sqlite3.connect(path) as held:
        held.execute("CREATE TABLE own (x)")
        held.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TuneError, match="database is locked"):
            Study(path, "k", SPACE)
    held.close()
    assert path.exists() and not path.with_suffix(".corrupt").exists()
    assert Study(path, "k", SPACE).trials() == []


@pytest.mark.parametrize("when", ["ask", "start", "tell"])
def test_a_database_that_is_held_after_it_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The trials told before are there for the next run."""
    monkeypatch.setattr("sparsec.autotune.study.BUSY_S", 0.1)
    path = tmp_path / "trials.db"
    study = Study(path, "k", SPACE)
    first, second = study.ask(Schedule()), study.ask()
    assert first is not None and second is not None
    study.tell(Trial(first[0], first[1], "timed", ratio=1.0, seconds=1.0))
    steps: dict[str, Callable[[], object]] = {
        "ask": study.ask,
        "start": lambda: study.start(second[0]),
        "tell": lambda: study.tell(Trial(second[0], second[1], "timed", ratio=1.0, seconds=1.0)),
    }
    held = sqlite3.connect(path, isolation_level=None)
    held.execute("BEGIN IMMEDIATE")
    with pytest.raises(
        TuneError, match=r"trials\.db could not be used .*database is locked.*are kept.*SPARSEC_CACHE_DIR"
    ):
        steps[when]()
    held.close()
    assert [t.schedule for t in Study(path, "k", SPACE).trials() if t.state == "timed"] == [first[1]]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TuneError, match="check the folder"):
        Study(tmp_path / "none" / "trials.db", "k", SPACE)


def _opened(path: Path, barrier_s: float) -> int:
    """Open a study at a moment that all processes share."""
    import time

    time.sleep(max(barrier_s - time.time(), 0))
    return len(Study(path, "k", SPACE).trials())


def test_processes_that_begin_together_make_one_database(tmp_path: Path) -> None:
    """Each finds no tables and makes them: only one of them may."""
    import time

    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_opened, [tmp_path / f"{n}.db" for n in range(4)], [0.0] * 4))  # all have imported Optuna
        for n in range(3):
            path, start = tmp_path / f"together_{n}.db", time.time() + 0.3
            assert list(pool.map(_opened, [path] * 4, [start] * 4)) == [0] * 4
