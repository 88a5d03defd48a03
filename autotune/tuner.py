"""Tuning a plan: each kernel that has choices in turn, the others at their best."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sparsec.autotune.cases import DenseCall
from sparsec.autotune.joint import Joint
from sparsec.autotune.lock import Locked, alone
from sparsec.autotune.measure import Clock, clock_for
from sparsec.autotune.packed import PackedCall
from sparsec.autotune.progress import Show
from sparsec.autotune.report import KernelReport, Report
from sparsec.autotune.search import Budget, Found, Search
from sparsec.autotune.space import Space
from sparsec.autotune.subject import KernelBuilder, KernelSubject
from sparsec.autotune.trial import Comparison, TuneError
from sparsec.autotune.workers import Pool
from sparsec.ir.error import InputError
from sparsec.lower import segments
from sparsec.lower.registry import default, known, space
from sparsec.oracle.values import OracleError
from sparsec.plan.plan import Kernel
from sparsec.runtime.cache import writable
from sparsec.runtime.compiled import Compiled
from sparsec.runtime.kernel import lowered
from sparsec.runtime.launch import source
from sparsec.runtime.packed.documents import Given
from sparsec.runtime.records import Record, bucket, record_key, toolchain
from sparsec.runtime.target import Target, available
from sparsec.tile.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor

PRELOAD = {"tvm": ("sparsec.backends.tvm.build", "tvm"), "triton": ("sparsec.backends.triton.warm", "triton", "torch")}
MOST_WORKERS = 16
MOST_WAIT_S = 600.0
"""For kernels that other processes tune, once all others are done."""


def tune(
    compiled: Compiled,
    inputs: Mapping[str, Tensor],
    *,
    trials: int = 60,
    seconds: float | None = None,
    kernels: Sequence[str] | None = None,
    workers: int | None = None,
    progress: Show | None = None,
    q_offset: int | None = None,
    gradients: bool | Sequence[str] = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
) -> Report:
    """Find the best schedules for these inputs; ``sparsec.compile`` uses them from then on.

    With ``cu_seqlens`` inputs are packed documents, as a call takes them, and what is found is for packed calls.

    Args:
        trials: configurations of each kernel; those of earlier runs count, so that a run that was cut short goes on.
        seconds: time for everything; None for no limit.
        kernels: names of kernels of the plan; None for all that have choices.
        workers: compiling processes; None for one per core, 16 at most.
        gradients: tune the backward kernels too, for gradients of these inputs; True for every float input.
        progress: told after every trial, see ``sparsec.autotune.progress.bar``.

    Raises:
        TuneError: a target that has nothing to tune, an unknown kernel, a CUDA graph being captured, other processes
            that tune every kernel there is, a GPU that a candidate broke.
        InputError, TargetError: as a call with these inputs.
    """
    _check(compiled, trials, inputs)
    began = time.monotonic()
    given = Given(cu_seqlens, cu_seqlens_k, max_seqlen_q, max_seqlen_k, q_offset)
    call = _call(compiled, inputs, given, gradients)
    run = Tuning(call, trials, progress)
    chosen = run.chosen(kernels)
    notes = [] if run.kept else [NOT_KEPT.format(folder=compiled.records.folder.parent)]
    with _pool(compiled.target, workers, trials) as pool:
        reports = run.each(chosen, pool, lambda left: _share(began, seconds, left), notes)
    database = str(run.database) if run.database else None
    return Report(compiled.target.name, tuple(reports), time.monotonic() - began, tuple(notes), database)


def _call(
    compiled: Compiled, inputs: Mapping[str, Tensor], given: Given, gradients: bool | Sequence[str]
) -> DenseCall | PackedCall:
    """What is tuned: the call, of the variant itself or of the joint one."""
    tuned = compiled if gradients is False else Joint.of(compiled, None if gradients is True else gradients)
    if given.cu_seqlens is None and given.cu_seqlens_k is None:
        every = tuned.with_cotangents(inputs) if isinstance(tuned, Joint) else inputs
        return DenseCall(tuned, every, given.q_offset)
    if given.q_offset is not None:
        raise TuneError("q_offset with cu_seqlens: packed calls are tuned for queries that end with their keys")
    return PackedCall(compiled, tuned, inputs, given)


NOT_KEPT = "the folder {folder} cannot be written, so what was found holds for this object and is not kept"


class Tuning:
    """What the kernels of one tuning share."""

    def __init__(self, call: DenseCall | PackedCall, trials: int, show: Show | None) -> None:
        self.call, self.trials, self.show = call, trials, show
        self.compiled = compiled = call.compiled
        self.dims, self.plan = call.dims, call.plan
        self.clock: Clock = clock_for(compiled.target.device)
        folder = compiled.records.folder.parent
        self.kept = writable(folder)
        self.folder = folder / "tuning" if self.kept else None
        self.database = folder / "trials.db" if self.kept else None

    def chosen(self, names: Sequence[str] | None) -> list[Kernel]:
        """The kernels to tune, in plan order."""
        unknown = set(names or ()) - {k.name for k in self.plan.kernels}
        if unknown:
            known = ", ".join(k.name for k in self.plan.kernels)
            raise TuneError(f"no kernel is called {', '.join(sorted(unknown))}; the plan's kernels are {known}")
        wanted = [k for k in self.plan.kernels if names is None or k.name in names]
        return [k for k in wanted if self.space(k).size > 1]

    def space(self, kernel: Kernel) -> Space:
        """The configurations of a kernel."""
        spec, target = kernel.spec, self.compiled.target.name
        if kernel.packed is None:
            return Space(default(spec, target), space(spec, target), known(spec, target))
        boxes = ("descriptors", "producer")
        choices = {name: values for name, values in space(spec, target).items() if name not in boxes}
        usual = segments.by_pointers(segments.schedule(spec, default(spec, target)))
        return Space(usual, choices, segments.known(spec, target))

    def each(
        self, chosen: Sequence[Kernel], pool: Pool, share: Callable[[int], float | None], notes: list[str]
    ) -> list[KernelReport]:
        """Tune kernels in turn, last those that other processes tune now. Raises Locked where all stay theirs."""
        queue, reports, refused = [(kernel, False) for kernel in chosen], list[KernelReport](), list[Locked]()
        for position, (kernel, last) in enumerate(queue):
            try:
                reports.append(self.kernel(kernel, pool, share(len(queue) - position), last))
            except Locked as error:
                if last:
                    refused.append(error)
                else:
                    queue.append((kernel, True))
            except KeyboardInterrupt:
                notes.append(f"interrupted before {kernel.name} was tuned")
                break
            if reports and reports[-1].stopped == "interrupted":
                break
        if refused and not reports:
            raise refused[0]
        notes += map(str, refused)
        return reports

    def kernel(self, kernel: Kernel, pool: Pool, deadline: float | None, wait: bool = False) -> KernelReport:
        """Tune one kernel; with ``wait``, when no other process does, until the deadline at most."""
        from sparsec.autotune.study import Study

        configurations = self.space(kernel)
        length, target = bucket(self.compiled.lengths.longest(self.dims)), self.compiled.target
        key = record_key(kernel.spec, target, length, kernel.packed is not None)
        name = "-".join([kernel.name, key[:16], configurations.digest, _code(kernel, configurations.default, target)])
        last: list[Comparison] = []

        def keep(schedule: Schedule, found: Comparison, tried: int) -> None:
            last[:] = [found]
            self._keep(kernel, key, schedule, found, tried)

        left = MOST_WAIT_S if deadline is None else min(MOST_WAIT_S, deadline - time.monotonic())
        with alone(self.folder, name, left if wait else 0.0):
            made = self.call.cases(kernel, configurations)
            subject = KernelSubject(kernel, configurations, target, self.compiled.cache_dir, made, self.clock, keep)
            study, builder = Study(self.database, name, configurations), KernelBuilder(subject, pool)
            try:
                found = Search(subject, study, builder, Budget(self.trials, deadline), self.show).run()
            except OracleError as error:  # what cannot be judged is not tuned, and its default stays
                found = Found(configurations.default, None, (), f"the oracle cannot judge it: {error}")
        return _report(kernel, configurations, found, last[0] if last else None)

    def _keep(self, kernel: Kernel, key: str, schedule: Schedule, found: Comparison, tried: int) -> None:
        """Use a schedule from now on, in this object and, through its record, in others."""
        if not self.kept:
            self.compiled.schedules[kernel.name] = schedule
            return
        tools = toolchain(self.compiled.target.backend)
        record = Record(kernel.name, schedule, found.seconds, found.incumbent_s, tried, tools)
        self.compiled.records.write(key, record)


def _code(kernel: Kernel, default: Schedule, target: Target) -> str:
    """A digest of the default's source: verdicts on other code than today's are no verdicts on this."""
    steps = lowered(kernel, default)[1].steps
    return hashlib.sha256("".join(source(step, target) for step in steps).encode()).hexdigest()[:12]


def _report(kernel: Kernel, space: Space, found: Found, last: Comparison | None) -> KernelReport:
    own, base = (last.seconds, last.incumbent_s) if last and found.schedule else (None, None)
    return KernelReport(kernel.name, found.schedule, space.default, own, base, found.trials, found.stopped)


def _check(compiled: Compiled, trials: int, inputs: object) -> None:
    import torch

    if not isinstance(inputs, Mapping):
        named = ", ".join(f'"{name}": {name}' for name in compiled.names)
        raise InputError(
            "inputs", f"a {type(inputs).__name__}", "a layer is tuned on its inputs by name", f"{{{named}}}"
        )
    for name, x in inputs.items():
        if isinstance(x, torch.Tensor) and bool(x.isnan().any()):
            rule = "rows that have one are as right under every schedule, so nothing would be judged by them"
            raise InputError(name, "a NaN", rule, "tune on inputs without")
    if trials < 1:
        raise TuneError(f"trials = {trials}: try at least one configuration")
    if compiled.target.backend not in PRELOAD:
        raise TuneError(f"target {compiled.target.name} has nothing to tune; compile for 'cpu' or 'cuda'")
    available(compiled.target)
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise TuneError("a CUDA graph is being captured, which no kernel may be compiled or timed in; tune before it")


@contextmanager
def _pool(target: Target, workers: int | None, trials: int) -> Iterator[Pool]:
    """Workers that compile while the GPU is measured, or in turn with the CPU's measurements."""
    from sparsec.backends.tvm.threads import cores

    count = workers or min(cores(), MOST_WORKERS, trials)
    with Pool(count, overlap=target.device != "cpu", preload=PRELOAD[target.backend]) as pool:
        yield pool


def _share(began: float, seconds: float | None, left: int) -> float | None:
    """The deadline of the next kernel: its share of the time that is left."""
    if seconds is None:
        return None
    now = time.monotonic()
    return now + max(began + seconds - now, 0.0) / left
