"""A pool of compiling processes: each job has a time limit, after which its worker is killed and replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import IO

from sparsec.autotune.trial import Built, Rejection, TuneError, Why

LIMIT_S = 60.0
START_S = 120.0
ALONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TVM_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
Outcome = tuple[int, Built | Rejection]
_NOTHING = -(2**31)  # the number of no job


class Worker:
    """One process, and the job that it has in hand.

    Attributes:
        ready: whether it has finished importing; its first message says so.
        job: the number of its job.
        deadline: when it is killed.
    """

    def __init__(self, preload: Sequence[str]) -> None:
        self.pipe, theirs = Pipe()
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        command = [sys.executable, "-m", "sparsec.autotune.worker", str(theirs.fileno()), *preload]
        self.process = subprocess.Popen(
            command, env=environment(), pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=self.log,
            stderr=self.log,
        )  # fmt: skip
        theirs.close()
        self.ready, self.job = False, _NOTHING
        self.deadline = time.monotonic() + START_S

    @property
    def idle(self) -> bool:
        """Whether it can be given a job."""
        return self.ready and self.job == _NOTHING

    def give(self, number: int, job: object, limit_s: float) -> None:
        """Hand over a job."""
        self.pipe.send(job)
        self.job, self.deadline = number, time.monotonic() + limit_s

    def end(self) -> str:
        """Kill the process and say how it was and what it said last."""
        if self.process.poll() is None:
            self.process.kill()
        code = self.process.wait()
        self.pipe.close()
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        self.log.close()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"{how}: {lines[-1][:300]}" if lines else how


def environment() -> dict[str, str]:
    """This process's environment for a worker: what is importable here is there; one thread; no GPU; no interpreter."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [os.path.abspath(p) if p else os.getcwd() for p in sys.path]
    return {**kept, **ALONE, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


class Pool:
    """Workers that are started when there is work for them, and kept until ``close``.

    Attributes:
        overlap: whether results are handed out while other jobs are running; if not, ``finished`` waits for all of
            them, so that nothing disturbs the clock of a CPU.
        killed: how many workers were killed for taking too long.
    """

    def __init__(
        self, workers: int, limit_s: float = LIMIT_S, overlap: bool = False, preload: Sequence[str] = ()
    ) -> None:
        assert workers > 0 and limit_s > 0
        self.most, self.limit_s, self.overlap, self.preload = workers, limit_s, overlap, tuple(preload)
        self.killed = 0
        self._workers: list[Worker] = []
        self._queue: deque[tuple[int, object]] = deque()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, number: int, job: object) -> None:
        """Queue a picklable job under a number of the caller's."""
        self._queue.append((number, job))
        self._dispatch()

    def finished(self, deadline: float = float("inf")) -> list[Outcome]:
        """Results since the last call; waits for the first one, or for all, but not beyond the deadline."""
        done: list[Outcome] = []
        while self._busy and time.monotonic() < deadline:
            if done and self.overlap:
                break
            done += self._step(deadline)
        return done

    def cancel(self) -> None:
        """Forget all jobs and end the workers that have one."""
        self._queue.clear()
        for worker in [w for w in self._workers if w.job != _NOTHING]:
            self._workers.remove(worker)
            worker.end()

    def close(self) -> None:
        """End every worker."""
        self._queue.clear()
        while self._workers:
            self._workers.pop().end()

    @property
    def _busy(self) -> bool:
        return bool(self._queue) or any(w.job != _NOTHING for w in self._workers)

    def _dispatch(self) -> None:
        for worker in self._workers:
            if self._queue and worker.idle:
                worker.give(*self._queue.popleft(), self.limit_s)
        starting = sum(not w.ready for w in self._workers)
        for _ in range(min(len(self._queue) - starting, self.most - len(self._workers))):
            self._workers.append(Worker(self.preload))

    def _step(self, deadline: float) -> list[Outcome]:
        """Wait for one thing to happen: messages, deaths, time limits."""
        self._dispatch()
        waiting = {w.pipe: w for w in self._workers if not w.idle}
        until = min([deadline, *(w.deadline for w in waiting.values())])
        heard = wait(list(waiting), max(until - time.monotonic(), 0.0))
        done = [out for pipe in heard if isinstance(pipe, Connection) for out in self._hear(waiting[pipe])]
        late = [w for w in waiting.values() if w.pipe not in heard and time.monotonic() >= w.deadline]
        done += [out for w in late for out in self._late(w)]
        self._dispatch()
        return done

    def _hear(self, worker: Worker) -> list[Outcome]:
        try:
            said = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            return self._replace(worker, "crash", "the process that compiled or ran it died: ")
        if not worker.ready:
            worker.ready = True
            return []
        number, worker.job = worker.job, _NOTHING
        return [(number, said)]

    def _late(self, worker: Worker) -> list[Outcome]:
        self.killed += 1
        return self._replace(worker, "time limit", f"took longer than {self.limit_s:g} s; its process was killed, ")

    def _replace(self, worker: Worker, why: Why, how: str) -> list[Outcome]:
        """Take a dead or late worker's job away; another worker is started when there is more to do."""
        self._workers.remove(worker)
        ready, number, last = worker.ready, worker.job, worker.end()
        if not ready:
            raise TuneError(f"a compiling process does not start: {last}; run `python -m sparsec.autotune.worker`")
        return [(number, Rejection(why, how + last))]
