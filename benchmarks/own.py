"""sparsec's side of a case: its variant compiled on the case's device, tuned if asked, as a call without arguments."""

from typing import Any

from torch import Tensor

from sparsec.benchmarks.cases import Case, Inputs
from sparsec.benchmarks.cases_nsa import SelectorCase
from sparsec.benchmarks.selector import selector_call, selector_plan
from sparsec.benchmarks.step import Call, Step, leaves_of
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.peak import call_bytes, training_peak


def own(case: Case, inputs: Inputs, trials: int) -> Call:
    """The case's variant; with `trials`, its kernels are tuned first, those of its backward too where it trains."""
    from sparsec.frontends.preset import preset

    knobs: dict[str, Any] = dict(case.knobs)
    compiled = compile(preset(case.preset, **knobs), "cuda" if case.device == "cuda" else "cpu")
    if isinstance(case, SelectorCase):
        return _selector(compiled, inputs, trials)
    if trials:
        compiled.tune(inputs, trials=trials, gradients=case.learned if case.train else False)
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


def _selector(compiled: Compiled, inputs: Inputs, trials: int) -> Call:
    """Values are no part of it: the keys stand in where the layer's inputs are asked for."""
    given = inputs | {"v": inputs["k"]}
    if trials:
        names = [kernel.name for kernel in selector_plan(compiled.plan(*compiled.bind(given))).kernels]
        compiled.tune(given, trials=trials, kernels=names)
    return selector_call(compiled, given)
