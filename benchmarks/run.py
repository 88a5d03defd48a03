"""Run cases: check ours, check and time every form of the peer, then time ours against the fastest, interleaved."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sparsec.benchmarks.cases import Case, Inputs
from sparsec.benchmarks.cases_nsa import SelectorCase
from sparsec.benchmarks.forms import Judges, Ours, judges_of, time_forms
from sparsec.benchmarks.groups import small
from sparsec.benchmarks.hardware import hardware
from sparsec.benchmarks.peers.form import Compiler, Run, compile_static
from sparsec.benchmarks.registry import cases_named
from sparsec.benchmarks.row import FormTime, Row, agrees, shape_of
from sparsec.benchmarks.step import Call, Step
from sparsec.benchmarks.timing import Pair, clock_for, peak_bytes, time_pair
from sparsec.benchmarks.verdict import Verdict

Check = Callable[[Case, Inputs, Tensor], Verdict]
Report = Callable[[str], None]
LINEAR = 2.1
"""The most that twice the length may hold where memory must grow as the length does."""


def run_cases(
    names: Sequence[str],
    ours: Ours,
    check: Check | None = None,
    *,
    rounds: int = 5,
    skip: Collection[str] = (),
    compiler: Compiler = compile_static,
    report: Report = print,
    as_small: bool = False,
) -> list[Row]:
    """Rows of the named cases; a case whose check fails, or that raises, gets none, and `report` says why.

    `ours(case, inputs)` returns a callable that gives [B, T, H, D]; it may compile and tune before it returns. `check`
    replaces the built-in fp64 reference on sampled tiles. `skip` names forms to leave out, such as `flex/tuned`.
    `as_small` runs every case at a few tokens on the CPU instead, whose times say nothing.
    """
    found = []
    for case in map(small if as_small else lambda case: case, cases_named(tuple(names))):
        try:
            with torch.no_grad():
                found.append(_run_case(case, ours, check, rounds, skip, compiler, report))
        except Exception as error:  # the cases after it are worth having
            report(f"{case.name}: failed, {type(error).__name__}: {error}"[:600])
        if case.device == "cuda":
            torch.cuda.empty_cache()
    return [row for row in found if row is not None]


def _run_case(
    case: Case, ours: Ours, check: Check | None, rounds: int, skip: Collection[str], compiler: Compiler, report: Report
) -> Row | None:
    inputs = case.inputs()
    judges = judges_of(case, inputs)
    run = ours(case, inputs)
    verdict, errors, wrong = checked(case, inputs, run, judges, check)
    if wrong:
        report(f"{case.name}: refused, {wrong}")
        return None
    peak, predicted = peak_bytes(run, case.device), run.predicted_peak_bytes if isinstance(run, Call) else None
    tuning = run.tuning_seconds if isinstance(run, Call) else None
    runs: dict[str, Run] = {}
    forms = time_forms(case, inputs, judges, skip, compiler, report, runs, ours)
    if forms and not runs:
        report(f"{case.name}: no form of a peer runs here")
    ms, fastest, pair = _timed(case, run, forms, runs, rounds)
    beside = f", {fastest} {pair.peer_ms:.3f} ms, ratio {pair.ratio:.2f}" if pair else ""
    report(f"{case.name}: {ms:.3f} ms{beside}")
    half = _half_peak(case, ours) if isinstance(case, SelectorCase) else None
    if peak and half and peak > LINEAR * half:
        report(f"{case.name}: refused, it holds {peak} bytes, and {half} at half the length")
        return None
    if agrees(predicted, peak) is False:
        report(f"{case.name}: holds {peak} bytes, predicted were {predicted}")
    return Row(
        case.name, shape_of(case), ms, fastest, pair, case.flops / ms / 1e9, peak, predicted, agrees(predicted, peak),
        verdict, forms, hardware(case.device), errors, tuning, half,
    )  # fmt: skip


def checked(
    case: Case, inputs: Inputs, run: Run, judges: Judges, check: Check | None = None
) -> tuple[Verdict, dict[str, float], str]:
    """What a case's judges say of a call: of the output, the errors of gradients, and what is wrong, "" if nothing."""
    verdict = check(case, inputs, run()) if check else judges.output(run())
    errors, wrong = judges.gradients(run) if judges.gradients and isinstance(run, Step) else ({}, "")
    return verdict, errors, "; ".join(r for r in (verdict.reason, wrong) if r) or ("" if verdict.passed else "wrong")


def _timed(
    case: Case, run: Run, forms: dict[str, FormTime], runs: dict[str, Run], rounds: int
) -> tuple[float, str, Pair | None]:
    """Our time, the fastest form, and both interleaved; our time alone where no form runs."""
    if not runs:
        return clock_for(case.device)(run, 100, 400), "", None
    fastest = min(runs, key=lambda name: forms[name].ms or math.inf)
    pair = time_pair(run, runs[fastest], rounds, case.device)
    return pair.ours_ms, fastest, pair


def _half_peak(case: Case, ours: Ours) -> int | None:
    """Peak bytes at half the length."""
    shorter = replace(case, T=case.T // 2)
    run = ours(shorter, shorter.inputs())
    run()
    return peak_bytes(run, case.device)
