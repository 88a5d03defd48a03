"""sparsec's side of a case: its variant compiled on the case's device, tuned if asked, as a call without arguments."""

from typing import Any

from torch import Tensor

from sparsec.autotune import tune
from sparsec.autotune.report import Report
from sparsec.benchmarks.cases import Case, Inputs
from sparsec.benchmarks.cases_nsa import SelectorCase
from sparsec.benchmarks.selector import selector_call, selector_plan
from sparsec.benchmarks.step import Call, Step, leaves_of
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.peak import call_bytes, training_peak


def own(case: Case, inputs: Inputs, trials: int) -> Call:
    """The case's variant; with `trials`, its kernels are tuned first, those of its backward too where it trains."""
    return called(case, compiled_for(case), inputs, trials)


def compiled_for(case: Case, target: str | None = None) -> Compiled:
    """The case's variant for a target, by default that of its device."""
    from sparsec.frontends.preset import preset

    knobs: dict[str, Any] = dict(case.knobs)
    return compile(preset(case.preset, **knobs), target or ("cuda" if case.device == "cuda" else "cpu"))


def given_to(inputs: Inputs) -> Inputs:
    """What the variant takes; a case without values has keys in their place."""
    return inputs if "v" in inputs else inputs | {"v": inputs["k"]}


def called(case: Case, compiled: Compiled, inputs: Inputs, trials: int) -> Call:
    """A call of the case's variant that was compiled before."""
    given = given_to(inputs)
    report = _tuned(compiled, case, given, trials) if trials else None
    made = selector_call(compiled, given) if isinstance(case, SelectorCase) else _call(compiled, case, given)
    made.tuning = report
    return made


def _call(compiled: Compiled, case: Case, inputs: Inputs) -> Call:
    leaves = leaves_of(case, inputs) if case.train else {}
    given: dict[str, Any] = {**inputs, **leaves}
    dims, dtype = compiled.bind(inputs)

    def run() -> Tensor:
        result = compiled(None, **given)
        assert not isinstance(result, tuple), "cases have one output"
        return result

    if case.train:
        return Step(case, run, leaves, predicted_peak_bytes=training_peak(compiled, dims, dtype, case.learned).peak)
    return Call(run, call_bytes(compiled, compiled.plan(dims, dtype), dims))


def _tuned(compiled: Compiled, case: Case, inputs: Inputs, trials: int) -> Report:
    """Tune what the case runs."""
    names = None
    if isinstance(case, SelectorCase):
        names = [kernel.name for kernel in selector_plan(compiled.plan(*compiled.bind(inputs))).kernels]
    gradients = case.learned if case.train else False
    return tune(compiled, inputs, trials=trials, kernels=names, gradients=gradients)
