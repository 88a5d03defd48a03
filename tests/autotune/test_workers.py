"""Compiling processes: results, failures, deaths and time limits, with jobs that need no compiler."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

import pytest

from sparsec.autotune.trial import Built, Rejection, TuneError
from sparsec.autotune.workers import Pool

FINE = partial(tuple, (32, 0, 1024))
STUCK = partial(time.sleep, 60.0)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2, limit_s=1.0) as made:
        yield made


def pids(pool: Pool) -> set[int]:
    return {w.process.pid for w in pool._workers}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


def rejected(outcome: Built | Rejection) -> Rejection:
    assert isinstance(outcome, Rejection)
    return outcome


def test_results_carry_their_numbers(pool: Pool) -> None:
    for number in range(5):
        pool.submit(number, partial(tuple, (number, 0, 7)))
    done = dict(pool.finished())
    assert sorted(done) == list(range(5))
    assert all(isinstance(b, Built) and b.registers == n and b.shared == 7 for n, b in done.items())


def test_an_exception_is_a_reason(pool: Pool) -> None:
    pool.submit(1, partial(int, "seven"))
    ((number, outcome),) = pool.finished()
    assert number == 1 and rejected(outcome).why == "compile"
    assert "ValueError" in rejected(outcome).reason and "'seven'" in rejected(outcome).reason


def test_a_job_that_takes_too_long_is_killed_and_its_worker_replaced(pool: Pool) -> None:
    pool.submit(0, FINE)
    pool.finished()
    before, killed = pids(pool), pool.killed
    began = time.monotonic()
    pool.submit(1, STUCK)
    ((_, outcome),) = pool.finished()
    assert 0.9 < time.monotonic() - began < 10
    assert rejected(outcome).why == "time limit" and "1 s" in rejected(outcome).reason
    (gone,) = before - pids(pool)
    assert not alive(gone) and pool.killed == killed + 1
    pool.submit(2, FINE)
    assert [n for n, outcome in pool.finished() if isinstance(outcome, Built)] == [2]


def test_others_finish_while_one_is_stuck(pool: Pool) -> None:
    for number, job in enumerate([STUCK, FINE, FINE, FINE]):
        pool.submit(number, job)
    done = dict(pool.finished())
    assert rejected(done[0]).why == "time limit"
    assert all(isinstance(done[n], Built) for n in (1, 2, 3))


def test_a_crash_costs_one_job(pool: Pool) -> None:
    for number, job in enumerate([FINE, partial(signal.raise_signal, signal.SIGSEGV), FINE]):
        pool.submit(number, job)
    done = dict(pool.finished())
    assert rejected(done[1]).why == "crash" and "SIGSEGV" in rejected(done[1]).reason
    assert isinstance(done[0], Built) and isinstance(done[2], Built)


def test_nothing_waits_beyond_the_deadline(pool: Pool) -> None:
    pool.submit(1, STUCK)
    began = time.monotonic()
    assert pool.finished(began + 0.2) == [] and time.monotonic() - began < 0.9
    pool.cancel()
    assert pool.finished() == []


def test_an_interrupt_is_for_the_tuner_alone(pool: Pool) -> None:
    pool.submit(0, FINE)
    pool.finished()
    for pid in pids(pool):
        os.kill(pid, signal.SIGINT)
    pool.submit(1, FINE)
    assert [n for n, outcome in pool.finished() if isinstance(outcome, Built)] == [1]


def test_results_come_one_by_one_where_the_clock_is_elsewhere() -> None:
    with Pool(2, limit_s=3.0, overlap=True) as pool:
        pool.submit(0, STUCK)
        pool.submit(1, FINE)
        assert [number for number, _ in pool.finished()] == [1]
        assert [number for number, _ in pool.finished()] == [0]


def test_closing_ends_every_process() -> None:
    with Pool(2) as pool:
        pool.submit(0, FINE)
        pool.submit(1, STUCK)
        pool.finished(time.monotonic() + 2.0)
        before = pids(pool)
        assert before
    assert not any(alive(pid) for pid in before)


def test_a_worker_that_cannot_start_is_said_so() -> None:
    with Pool(1, preload=("no_such_module_at_all",)) as pool:
        pool.submit(0, FINE)
        with pytest.raises(TuneError, match="no_such_module_at_all"):
            pool.finished()


ORPHAN = """
import time
from functools import partial
from sparsec.autotune.workers import Pool
pool = Pool(1)
pool.submit(0, partial(tuple, (1, 2, 3)))
pool.finished()
pool.submit(1, partial(time.sleep, 60.0))
print(pool._workers[0].process.pid, flush=True)
time.sleep(60)
"""


def test_workers_do_not_outlive_a_killed_tuner() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    tuner = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, env=environment)
    assert tuner.stdout is not None
    with tuner.stdout:
        pid = int(tuner.stdout.readline())
        assert alive(pid)
        tuner.kill()
        tuner.wait()
    until = time.monotonic() + 5
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(pid)
