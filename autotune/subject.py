"""A kernel of a plan as the search sees it: what it refuses, admits, measures and keeps."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from sparsec.autotune.admit import Admission, failure
from sparsec.autotune.cases import Case
from sparsec.autotune.jobs import Job, reason
from sparsec.autotune.measure import FINAL, SEARCH, Clock, compare
from sparsec.autotune.space import Space
from sparsec.autotune.trial import Comparison, Rejection, Unfit
from sparsec.autotune.workers import Outcome, Pool
from sparsec.plan.plan import Kernel
from sparsec.runtime.kernel import BuiltKernel, lowered
from sparsec.runtime.target import Target
from sparsec.scalar.evaluate import evaluate
from sparsec.tile.build import TileError
from sparsec.tile.resources import refusal
from sparsec.tile.schedule import Schedule, ScheduleError

Keep = Callable[[Schedule, Comparison, int], None]


class KernelSubject:
    """Implements ``search.Subject`` for a kernel on its cases; the last case is the one that is timed."""

    def __init__(
        self, kernel: Kernel, space: Space, target: Target, cache_dir: Path, cases: list[Case], clock: Clock, keep: Keep
    ) -> None:
        self.kernel, self.space, self.target, self.cache_dir = kernel, space, target, cache_dir
        self.name, self.cases, self.clock, self._keep = kernel.name, cases, clock, keep
        self.admission = Admission(kernel, cases)
        self._built: dict[Schedule, BuiltKernel] = {}

    def refuse(self, schedule: Schedule) -> Rejection | None:
        """What the lowering says, and what the program would need at least."""
        try:
            made = lowered(self.kernel, schedule)[1]
        except (ScheduleError, TileError) as error:
            return Rejection("illegal", reason(error))
        for step in made.steps if self.target.backend == "triton" else ():
            lacking = refusal(step.program, step.schedule, self.target.shared)
            if lacking is not None:
                return Rejection("shared memory" if lacking[0] == "shared memory" else "registers", lacking[1])
        return None

    def admit(self, schedule: Schedule) -> Rejection | None:
        """Right on every case, or why not."""
        try:
            built = self._load(schedule)
        except Exception as error:
            return Rejection("compile", reason(error))
        return self.admission.judge(built)

    def compare(self, challenger: Schedule, incumbent: Schedule, final: bool) -> Comparison:
        """Both on the full case, in turn. Raises Unfit where one of them does not run."""
        case = self.cases[-1]
        try:
            runs = [self._load(s).prepared(case.buffers, case.dims)[0] for s in (challenger, incumbent)]
            self._built = {s: b for s, b in self._built.items() if s in (challenger, incumbent)}
            return compare(runs[0], runs[1], self.clock, FINAL if final else SEARCH)
        except Exception as error:
            raise Unfit(failure(error), False) from error

    def keep(self, schedule: Schedule, found: Comparison, trials: int) -> None:
        """Hand the best configuration to the caller."""
        self._keep(schedule, found, trials)

    def _load(self, schedule: Schedule) -> BuiltKernel:
        if schedule not in self._built:
            self._built[schedule] = BuiltKernel(self.kernel, schedule, self.target, self.cache_dir)
        return self._built[schedule]


class KernelBuilder:
    """Implements ``search.Builder``: compiles a kernel's configurations in a pool of processes."""

    def __init__(self, subject: KernelSubject, pool: Pool) -> None:
        self.subject, self.pool, self.batch = subject, pool, pool.most + 2
        self._folder = tempfile.TemporaryDirectory(prefix="sparsec-probe-")  # removed with this object
        self._probe = self._write_probe()

    def submit(self, number: int, schedule: Schedule) -> None:
        """Queue a configuration."""
        subject, case = self.subject, self.subject.cases[0 if self._probe else -1]
        kernel, packed = subject.kernel, None
        if kernel.packed is not None:
            packed = replace(kernel, sources=(), results=())
            kernel = lowered(kernel, schedule)[0]
        like = {
            name: (str(x.dtype).removeprefix("torch."), tuple(x.shape), tuple(x.stride()))
            for name, x in case.buffers.items()
            if name in (*kernel.reads, *kernel.writes)
        }
        params = {name: int(evaluate(value, case.dims)) for name, value in kernel.params}
        job = Job(kernel.spec, schedule, subject.target, subject.cache_dir, params, like, self._probe, packed)
        self.pool.submit(number, job)

    def finished(self, deadline: float) -> list[Outcome]:
        """What is compiled by now."""
        return self.pool.finished(deadline)

    def cancel(self) -> None:
        """Forget what is being compiled."""
        self.pool.cancel()

    def _write_probe(self) -> Path | None:
        """The smallest case as a file, for workers that can run what they build."""
        kernel, case = self.subject.kernel, self.subject.cases[0]
        if self.subject.target.backend != "tvm":
            return None
        path = Path(self._folder.name) / "probe.pt"
        torch.save({name: case.buffers[name].contiguous() for name in (*kernel.reads, *kernel.writes)}, path)
        return path
