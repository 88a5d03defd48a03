"""Every form of a case's peer: built, checked by the case's judges, then timed; one that cannot run says why."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsec.benchmarks.cases import Case, Inputs
from sparsec.benchmarks.gradients import GradientReferee
from sparsec.benchmarks.peers.form import Compiler, Form, Run, compile_static
from sparsec.benchmarks.peers.table import forms_for
from sparsec.benchmarks.row import FormTime
from sparsec.benchmarks.step import Step
from sparsec.benchmarks.timing import clock_for, peak_bytes
from sparsec.benchmarks.verdict import Referee

Ours = Callable[[Case, Inputs], Run]
Report = Callable[[str], None]
PEER_SLACK = 3.0


@dataclass(frozen=True, slots=True)
class Judges:
    """Who judges outputs and, where a case trains, gradients."""

    output: Referee
    gradients: GradientReferee | None


def judges_of(case: Case, inputs: Inputs) -> Judges:
    """The judges of a case on some inputs."""
    return Judges(Referee(case, inputs), GradientReferee(case, inputs) if case.train else None)


def time_forms(
    case: Case,
    inputs: Inputs,
    judges: Judges,
    skip: Collection[str] = (),
    compiler: Compiler = compile_static,
    report: Report = print,
    runs: dict[str, Run] | None = None,
    ours: Ours | None = None,
) -> dict[str, FormTime]:
    """Every form of the case's peer, checked, then timed; a form that cannot run or is wrong says why.

    The callables of the forms that count are put into `runs`. `ours` builds forms that are sparsec's own.
    """
    torch.compiler.reset()  # each case starts below Dynamo's limit of recompilations
    times: dict[str, FormTime] = {}
    kept = {} if runs is None else runs
    for form in forms_for(case):
        if str(form) in skip or (form.build is None and ours is None):
            continue
        try:
            times[str(form)] = time = _time_form(case, inputs, form, judges, compiler, kept, ours)
        except Exception as error:  # a peer that cannot run here is a result, not a crash
            times[str(form)] = time = FormTime(refused=f"{type(error).__name__}: {error}"[:300])
        figure = f"{time.ms:.3f} ms, error {time.error:.1e}" if time.ms else f"refused, {time.refused}"
        report(f"{case.name}: {form} {figure}")
    return times


def _time_form(
    case: Case,
    inputs: Inputs,
    form: Form,
    judges: Judges,
    compiler: Compiler,
    kept: dict[str, Run],
    ours: Ours | None,
) -> FormTime:
    slack = PEER_SLACK
    if form.build is not None:
        run = form.build(case, inputs, compiler)
    else:
        assert form.case is not None and ours is not None
        inputs, slack = form.case.inputs(), 1.0
        judges, run = judges_of(form.case, inputs), ours(form.case, inputs)
    verdict = judges.output(run(), slack)
    if not verdict.passed:
        return FormTime(error=verdict.error, refused=verdict.reason)
    wrong = judges.gradients(run, slack)[1] if judges.gradients and isinstance(run, Step) else ""
    if wrong:
        return FormTime(error=verdict.error, refused=wrong)
    run = repeated(run, form.times)
    time = FormTime(clock_for(case.device)(run, 100, 400), peak_bytes(run, case.device), verdict.error)
    kept[str(form)] = run
    return time


def repeated(run: Run, times: int) -> Run:
    """A call that makes so many calls, and gives what the last gave."""
    if times == 1:
        return run

    def all_of_them() -> Tensor:
        for _ in range(times - 1):
            run()
        return run()

    return all_of_them
