"""Run cases: check ours, check and time every form of the peer, then time ours against the fastest, interleaved."""

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparsec.benchmarks.cases import Case, Inputs
from sparsec.benchmarks.gradients import GradientReferee
from sparsec.benchmarks.hardware import Record, hardware
from sparsec.benchmarks.peers.form import Compiler, Form, Run, compile_static
from sparsec.benchmarks.peers.table import forms_for
from sparsec.benchmarks.registry import cases_named
from sparsec.benchmarks.step import Step
from sparsec.benchmarks.timing import Pair, clock_for, peak_bytes, time_pair
from sparsec.benchmarks.verdict import Referee, Verdict

Ours = Callable[[Case, Inputs], Run]
Check = Callable[[Case, Inputs, Tensor], Verdict]
Report = Callable[[str], None]
PEER_SLACK = 3.0


@dataclass(frozen=True, slots=True)
class FormTime:
    """A peer's form: median time and peak bytes, or why it does not count."""

    ms: float | None = None
    peak_bytes: int | None = None
    error: float | None = None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One case, checked and timed. `peer` is the fastest form; a ratio is its time over ours.

    Attributes:
        gradient_errors: of ours, by input; empty where the case has no backward.
    """

    case: str
    shape: dict[str, object]
    peer: str
    pair: Pair
    tflops: float
    peak_bytes: int | None
    verdict: Verdict
    forms: dict[str, FormTime]
    hardware: Record
    gradient_errors: dict[str, float]


def run_cases(
    names: Sequence[str],
    ours: Ours,
    check: Check | None = None,
    *,
    rounds: int = 5,
    skip: Collection[str] = (),
    compiler: Compiler = compile_static,
    report: Report = print,
) -> list[Row]:
    """Rows of the named cases; a case whose check fails gets none, and `report` says why.

    `ours(case, inputs)` returns a callable that gives [B, T, H, D]; it may compile and tune before it returns. `check`
    replaces the built-in fp64 reference on sampled tiles. `skip` names forms to leave out, such as `flex/tuned`.
    """
    with torch.no_grad():
        found = [_run_case(case, ours, check, rounds, skip, compiler, report) for case in cases_named(tuple(names))]
    return [row for row in found if row is not None]


def _run_case(
    case: Case, ours: Ours, check: Check | None, rounds: int, skip: Collection[str], compiler: Compiler, report: Report
) -> Row | None:
    inputs = case.inputs()
    referee, run = Referee(case, inputs), ours(case, inputs)
    gradients = GradientReferee(case, inputs) if case.train else None
    verdict = check(case, inputs, run()) if check else referee(run())
    errors, wrong = gradients(run) if gradients and isinstance(run, Step) else ({}, "")
    if not verdict.passed or wrong:
        report(f"{case.name}: refused, {'; '.join(r for r in (verdict.reason, wrong) if r)}")
        return None
    runs: dict[str, Run] = {}
    forms = time_forms(case, inputs, referee, skip, compiler, report, runs, gradients)
    if not runs:
        report(f"{case.name}: no form of a peer runs here")
        return None
    fastest = min(runs, key=lambda name: forms[name].ms or math.inf)
    pair = time_pair(run, runs[fastest], rounds, case.device)
    report(f"{case.name}: {pair.ours_ms:.3f} ms, {fastest} {pair.peer_ms:.3f} ms, ratio {pair.ratio:.2f}")
    tflops, peak = case.flops / pair.ours_ms / 1e9, peak_bytes(run, case.device)
    return Row(case.name, _shape(case), fastest, pair, tflops, peak, verdict, forms, hardware(case.device), errors)


def time_forms(
    case: Case,
    inputs: Inputs,
    referee: Referee,
    skip: Collection[str] = (),
    compiler: Compiler = compile_static,
    report: Report = print,
    runs: dict[str, Run] | None = None,
    gradients: GradientReferee | None = None,
) -> dict[str, FormTime]:
    """Every form of the case's peer, checked, then timed; a form that cannot run or is wrong says why.

    The callables of the forms that count are put into `runs`.
    """
    torch.compiler.reset()  # each case starts below Dynamo's limit of recompilations
    times: dict[str, FormTime] = {}
    kept = {} if runs is None else runs
    for form in forms_for(case):
        if str(form) not in skip:
            times[str(form)] = time = _time_form(case, inputs, form, (referee, gradients), compiler, kept)
            figure = f"{time.ms:.3f} ms, error {time.error:.1e}" if time.ms else f"refused, {time.refused}"
            report(f"{case.name}: {form} {figure}")
    return times


def _time_form(
    case: Case,
    inputs: Inputs,
    form: Form,
    referees: tuple[Referee, GradientReferee | None],
    compiler: Compiler,
    kept: dict[str, Run],
) -> FormTime:
    referee, gradients = referees
    try:
        run = form.build(case, inputs, compiler)
        verdict = referee(run(), PEER_SLACK)
        if not verdict.passed:
            return FormTime(error=verdict.error, refused=verdict.reason)
        wrong = gradients(run, PEER_SLACK)[1] if gradients and isinstance(run, Step) else ""
        if wrong:
            return FormTime(error=verdict.error, refused=wrong)
        peak = peak_bytes(run, case.device)
        time = FormTime(clock_for(case.device)(run, 100, 400), peak, verdict.error)
    except Exception as error:  # a peer that cannot run here is a result, not a crash
        return FormTime(refused=f"{type(error).__name__}: {error}"[:300])
    kept[str(form)] = run
    return time


def _shape(case: Case) -> dict[str, object]:
    """The case's fields as JSON."""
    return {name: str(value) if isinstance(value, torch.dtype) else value for name, value in asdict(case).items()}


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write rows as a JSON list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
