"""A tuner that is killed at twenty random moments: each next run goes on, and only what was running is lost."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from sparsec.autotune.space import Space
from sparsec.autotune.study import Study
from sparsec.runtime.records import Records
from sparsec.tile.schedule import Schedule

KILLS = 20
CHOICES: dict[str, tuple[object, ...]] = {
    "rows": (16, 32, 64, 128),
    "block": (16, 32, 64, 128),
    "warps": (1, 2, 4, 8),
    "stages": (1, 2, 3, 4),
    "unroll": (1, 2),
    "vector": (4, 8, 16),
}
SPACE = Space(Schedule(), CHOICES)

TUNER = f"""
import sys, time
from pathlib import Path
from sparsec.autotune.lock import alone
from sparsec.autotune.search import Budget, Search
from sparsec.autotune.space import Space
from sparsec.autotune.study import Study
from sparsec.autotune.trial import Built, Comparison, Rejection
from sparsec.runtime.records import Record, Records
from sparsec.tile.schedule import Schedule

folder, trials = Path(sys.argv[1]), int(sys.argv[2])

def seconds(s):
    return abs(s.rows - 128) + abs(s.block - 32) + 10 * abs(s.warps - 8) + s.stages + s.unroll

class Toy:
    name = "toy"
    def refuse(self, s):
        return Rejection("shared memory", "too large") if s.rows * s.block * s.stages > 40000 else None
    def admit(self, s):
        time.sleep(0.003)
        return Rejection("wrong result", "off") if s.warps == 2 else None
    def compare(self, own, other, final):
        time.sleep(0.005)
        ratio = seconds(own) / seconds(other)
        return Comparison(ratio, ratio, ratio, seconds(own), seconds(other), 7)
    def keep(self, s, found, tried):
        Records(folder).write("key", Record("toy", s, found.seconds, found.incumbent_s, tried, "none"))

class Compiler:
    batch = 4
    def __init__(self):
        self.jobs = []
    def submit(self, number, schedule):
        self.jobs.append(number)
    def finished(self, deadline):
        jobs, self.jobs = self.jobs, []
        return [(number, Built()) for number in jobs]
    def cancel(self):
        self.jobs = []

def show(progress):
    print(progress.done, flush=True)

with alone(folder, "toy"):
    study = Study(folder / "trials.db", "toy", Space(Schedule(), {CHOICES!r}))
    print("open", len([t for t in study.trials() if t.state != "lost"]), flush=True)
    found = Search(Toy(), study, Compiler(), Budget(trials), show).run()
print("done", flush=True)
"""


def start(folder: Path, trials: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    command = [sys.executable, "-c", TUNER, str(folder), str(trials)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def killed(folder: Path, rng: random.Random, while_starting: bool) -> int:
    """Run the tuner, kill it at a random moment, and say how many trials it had said it stored."""
    process = start(folder, SPACE.size)
    assert process.stdout is not None
    with process.stdout:
        if not while_starting:
            assert process.stdout.readline().startswith("open")
        time.sleep(rng.uniform(0.0, 0.8))
        assert process.poll() is None, "the tuner ended before it was killed"
        process.kill()
        said = [line for line in process.stdout.read().splitlines() if line.isdigit()]
    process.wait()
    return int(said[-1]) if said else 0


def stored(path: Path) -> tuple[int, int]:
    """Trials in the database that have a verdict, and trials that are open."""
    if not path.exists():
        return 0, 0
    with sqlite3.connect(path) as db:
        counts = Counter(dict(db.execute("select state, count(*) from trials group by state")))
    return counts["COMPLETE"] + counts["PRUNED"], counts["RUNNING"]


def test_twenty_kills_lose_only_what_was_running(tmp_path: Path) -> None:
    path, rng, most_open = tmp_path / "trials.db", random.Random(20), 0
    for kill in range(KILLS):
        before, _ = stored(path)
        told = killed(tmp_path, rng, while_starting=kill % 4 == 3)
        after, still_open = stored(path)
        assert after >= max(before, told), "a verdict was lost"
        assert Records(tmp_path).read("key") is not None or after <= 1, "the record is gone or torn"
        most_open = max(most_open, still_open)
    done, still_open = stored(path)
    assert done > KILLS // 2, "the kills came too early to test anything"  # a loaded machine gets through fewer trials
    assert 0 < most_open <= 4 + 1, "a kill left more open than a batch"
    last = start(tmp_path, done + 10)
    output, _ = last.communicate(timeout=60)
    opened = int(output.splitlines()[0].removeprefix("open "))
    assert done <= opened <= done + still_open, "what a second kill left running is rejected, nothing else is new"
    assert output.splitlines()[-1] == "done"
    assert stored(path) == (done + 10, 0)
    ended = [t for t in Study(path, "toy", SPACE).trials() if t.state != "lost"]
    assert len({t.schedule for t in ended}) == len(ended) == done + 10
    record = Records(tmp_path).read("key")
    best = min((t for t in ended if t.ratio is not None), key=lambda t: t.ratio or 0.0)
    assert record is not None and record.schedule == best.schedule


def test_an_interrupt_ends_the_tuner_by_itself(tmp_path: Path) -> None:
    process = start(tmp_path, SPACE.size)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "12":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and output.splitlines()[-1] == "done"
    ended, still_open = stored(tmp_path / "trials.db")
    assert ended >= 12 and still_open == 0
