"""Where the time of a call goes: `sparsec bench CASE … --events`, by CUDA events between its kernels.

Each kernel's time stands beside the fewest bytes that it must move, as a share of a copy's rate on that device, and the
sum of all beside the time of a whole call. A row exists only where the check against fp64 passed, as for any case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sparsec.benchmarks.cases import Case
from sparsec.benchmarks.forms import judges_of
from sparsec.benchmarks.groups import small
from sparsec.benchmarks.halves import Half, halves
from sparsec.benchmarks.hardware import Record, hardware
from sparsec.benchmarks.laps import Laps, Run, laps_for, median_laps
from sparsec.benchmarks.own import called, compiled_for
from sparsec.benchmarks.registry import cases_named
from sparsec.benchmarks.row import shape_of
from sparsec.benchmarks.run import checked
from sparsec.benchmarks.steps import copy_seconds
from sparsec.benchmarks.timing import clock_for
from sparsec.plan.cost import cost
from sparsec.plan.plan import Kernel
from sparsec.scalar.evaluate import evaluate

Report = Callable[[str], None]
ROUNDS = 21
COPIED = {"cuda": 2**30, "cpu": 2**27}
"""Bytes of the copy whose rate is compared with."""


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One kernel of a plan.

    Attributes:
        half: `forward` or `backward`.
        programs: milliseconds by program, in the order of their launches.
        nbytes: that it must move at least, each tensor once.
        share: the time that a copy of so many bytes takes, over its own; small where arithmetic binds it.
    """

    kernel: str
    half: str
    ms: float
    programs: Mapping[str, float]
    nbytes: int
    share: float


@dataclass(frozen=True, slots=True)
class EventRow:
    """A case's kernels.

    Attributes:
        sum_ms: of all kernels; ``whole_ms`` of a call, in which they follow without an event in between.
        copy_rate: bytes per second of a copy.
        error: of the output.
    """

    case: str
    shape: Mapping[str, object]
    kernels: tuple[KernelTime, ...]
    sum_ms: float
    whole_ms: float
    copy_rate: float
    error: float
    gradient_errors: Mapping[str, float]
    hardware: Record


def event_rows(
    names: Sequence[str],
    *,
    trials: int = 0,
    rounds: int = ROUNDS,
    as_small: bool = False,
    laps: Laps | None = None,
    report: Report = print,
) -> Iterator[EventRow]:
    """A row per case; one that raises or is wrong gets none, and ``report`` says why."""
    rates: dict[str, float] = {}
    for case in map(small if as_small else lambda case: case, cases_named(tuple(names))):
        try:
            with torch.no_grad():
                if case.device not in rates:
                    size = COPIED[case.device]
                    rates[case.device] = size / copy_seconds(size, 1, case.device)
                row = _row(case, trials, rounds, laps or laps_for(case.device), rates[case.device], report)
        except Exception as error:  # the cases after it are worth having
            report(f"{case.name}: failed, {type(error).__name__}: {error}"[:600])
            continue
        if row is not None:
            report(f"{case.name}: {row.sum_ms:.3f} ms in {len(row.kernels)} kernels, {row.whole_ms:.3f} ms a call")
            yield row
        if case.device == "cuda":
            torch.cuda.empty_cache()


def _row(case: Case, trials: int, rounds: int, laps: Laps, rate: float, report: Report) -> EventRow | None:
    inputs, compiled = case.inputs(), compiled_for(case)
    run = called(case, compiled, inputs, trials)
    verdict, errors, wrong = checked(case, inputs, run, judges_of(case, inputs))
    if wrong:
        report(f"{case.name}: refused, {wrong}")
        return None
    whole = clock_for(case.device)(run, 25, 100)
    kernels = tuple(times(halves(case, compiled, inputs), laps, rounds, rate))
    total = sum(k.ms for k in kernels)
    return EventRow(
        case.name, shape_of(case), kernels, total, whole, rate, verdict.error, errors, hardware(case.device)
    )


def times(parts: Sequence[Half], laps: Laps, rounds: int, rate: float) -> Iterator[KernelTime]:
    """Every kernel of the halves of a call, timed as one after the other; ``rate`` is a copy's, bytes per second."""
    launches: list[tuple[str, Run]] = [launch for half in parts for _, own in half.kernels for launch in own]
    found = iter(median_laps(laps, [run for _, run in launches], rounds))
    for half in parts:
        for kernel, own in half.kernels:
            programs = _added([(name, next(found)) for name, _ in own])
            ms, nbytes = sum(programs.values()), least_bytes(kernel, half.dims)
            yield KernelTime(kernel.name, half.name, ms, programs, nbytes, nbytes / rate / (ms * 1e-3) if ms else 0.0)


def _added(named: Sequence[tuple[str, float]]) -> dict[str, float]:
    """By name, in order; of programs that are launched twice the sum."""
    total: dict[str, float] = {}
    for name, ms in named:
        total[name] = total.get(name, 0.0) + ms
    return total


def least_bytes(kernel: Kernel, dims: Mapping[str, int]) -> int:
    """The bytes that a kernel must move at these dims, each tensor once."""
    formulas, params = cost(kernel.spec), {name: int(evaluate(value, dims)) for name, value in kernel.params}
    return formulas.at(formulas.bytes, params)


HEAD = ("case", "kernel", "ms", "MB", "of a copy's rate", "programs, ms")


def table(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows as JSON values -> the lines of a table under ``HEAD``."""
    return [line for row in rows for line in _lines(row)]


def _lines(row: Mapping[str, Any]) -> list[tuple[str, ...]]:
    lines = [_line(str(row["case"]), k) for k in row["kernels"]]
    moved = sum(k["nbytes"] for k in row["kernels"])
    share = moved / row["copy_rate"] / (row["sum_ms"] * 1e-3)
    words = f"a whole call {row['whole_ms']:.3f}, sum over it {row['sum_ms'] / row['whole_ms']:.2f}"
    return [*lines, (str(row["case"]), "all", f"{row['sum_ms']:.3f}", f"{moved / 1e6:.1f}", f"{share:.0%}", words)]


def _line(case: str, k: Mapping[str, Any]) -> tuple[str, ...]:
    parts = ", ".join(f"{name} {ms:.3f}" for name, ms in k["programs"].items()) if len(k["programs"]) > 1 else ""
    return case, f"{k['half']} {k['kernel']}", f"{k['ms']:.3f}", f"{k['nbytes'] / 1e6:.1f}", f"{k['share']:.0%}", parts
