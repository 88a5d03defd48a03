"""Matrix states by token recurrence: outputs, last states and every gradient are the oracle's, on every back end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from sparsec.frontends.text import parse
from sparsec.passes.differentiate import differentiate
from sparsec.plan.plan import Kernel, PlanError
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.kernel import BuiltKernel
from sparsec.runtime.target import INTERPRETER
from sparsec.testing.inputs.recurrent import RECURRENT, draw
from sparsec.testing.whole.chain import links, poisoned
from sparsec.testing.whole.trained import wrong_on
from sparsec.tile.schedule import Schedule, ScheduleError

SIZES = {"B": 2, "T": 23, "H": 4, "HKV": 2, "D": 16, "DV": 32}


@cache
def on(name: str, target: str) -> Compiled:
    return compile(parse(RECURRENT[name]), target=target)


@pytest.mark.parametrize("name", RECURRENT)
def test_outputs_and_gradients_in_the_interpreter(name: str) -> None:
    assert wrong_on(on(name, "interpreter"), draw(on(name, "interpreter").variant, SIZES), "float32") == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gated-delta", "undecayed-erase"])
def test_half_precision_with_exact_decays(name: str, dtype: str) -> None:
    compiled = on(name, "interpreter")
    assert wrong_on(compiled, draw(compiled.variant, SIZES, getattr(torch, dtype)), dtype) == []


@pytest.mark.parametrize("sizes", [{"T": 1}, {"T": 4}, {"T": 17, "B": 1}, {"H": 2, "D": 24, "DV": 40}], ids=str)
def test_lengths_heads_and_dims_of_any_size(sizes: dict[str, int]) -> None:
    for name in ("gated-delta", "two-readers"):
        compiled = on(name, "interpreter")
        assert wrong_on(compiled, draw(compiled.variant, SIZES | sizes), "float32") == []


@pytest.mark.parametrize("name", ["channel", "gated-delta", "undecayed-erase", "two-readers"])
def test_compiled_for_this_cpu(name: str) -> None:
    compiled = on(name, "tvm:llvm")
    assert wrong_on(compiled, draw(compiled.variant, SIZES), "float32") == []


JOINT = """
import json, sys, torch
from sparsec.frontends.text import parse
from sparsec.passes.differentiate import differentiate
from sparsec.runtime.compiled import compile
from sparsec.testing.whole.chain import links
from sparsec.testing.inputs.recurrent import RECURRENT, draw
made = compile(differentiate(parse(RECURRENT[sys.argv[1]])).variant, target="triton:sm_90")
x = draw(made.variant, {"B": 2, "T": 7, "H": 2, "HKV": 1, "D": 24, "DV": 48})
print(json.dumps([link.sentence for link in links(made, x) if not link.ok]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gated-delta", "undecayed-erase"])
def test_interpreted_by_triton(name: str) -> None:
    command, env = [sys.executable, "-c", JOINT, name], {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def kernels(name: str) -> tuple[Compiled, dict[str, torch.Tensor], dict[str, int], list[Kernel]]:
    """The joint plan of a recurrence, its inputs, dims and kernels."""
    made = compile(differentiate(parse(RECURRENT[name])).variant, target="interpreter")
    x = draw(made.variant, SIZES)
    dims, dtype = made.bind(x, None)
    return made, x, dims, list(made.plan(dims, dtype).kernels)


STYLES = {
    "narrow": Schedule(order="token", value_block=8, block=8, rows=2),
    "one tile, held one by one": Schedule(order="token", block=4, rows=1, split_dims=False),
    "more than there are": Schedule(order="token", value_block=64, block=32, rows=4),
}


@pytest.mark.parametrize("style", STYLES)
def test_schedules_change_nothing(style: str, tmp_path: Path) -> None:
    made, x, dims, found = kernels("undecayed-erase")
    plan = made.plan(dims, "float32")
    buffers, reference = poisoned(plan, x, dims), poisoned(plan, x, dims)
    for kernel in found:
        BuiltKernel(kernel, STYLES[style], INTERPRETER, tmp_path).run(buffers, dims)
        made.built(kernel, dims).run(reference, dims)
    for buffer in plan.buffers:
        torch.testing.assert_close(buffers[buffer.name], reference[buffer.name], rtol=2e-4, atol=2e-5)


def test_groups_that_do_not_fill_a_block_are_refused() -> None:
    from sparsec.lower.registry import lower_kernel

    *_, found = kernels("delta")
    with pytest.raises(ScheduleError, match="block 6 is not a multiple of rows 4"):
        lower_kernel(found[-1].spec, Schedule(order="token", block=6, rows=4))


MISTAKES = {
    "reads": lambda w: replace(w, reads="decayed" if w.reads == "undecayed" else "undecayed"),
    "another decay": lambda w: replace(w, decay=w.erase[0]),
    "no first states": lambda w: replace(w, initial=None),
    "no rate": lambda w: replace(w, beta=None),
    "no erasing": lambda w: replace(w, rule="additive", erase=None),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_kernel_is_found(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, x, _, found = kernels("undecayed-erase")
    specs = {}
    for kernel in found:
        spec = kernel.spec
        assert isinstance(spec, Scan | ScanGrad)
        own = spec if isinstance(spec, Scan) else spec.forward
        broken = replace(own, writes=MISTAKES[mistake](own.writes))
        specs[kernel.name] = replace(kernel, spec=broken if isinstance(spec, Scan) else replace(spec, forward=broken))
    built = made.built
    monkeypatch.setattr(type(made), "built", lambda self, kernel, dims: built(specs[kernel.name], dims))
    assert not any(link.ok for link in links(made, x) if link.lower in specs)


REFUSED = {
    "a decay per element": (
        parse("""variant x(q: [B,T,H,D], k: [B,T,HKV,D], v: [B,T,HKV,DV], g: [B,T,HKV,D,DV] float32) {
          return recall(q, write(state(), k, v, decay=g) {decay_kind = full}) }"""),
        "a decay per element of the state has no kernel yet",
    ),
    "a softmax over states that fade per channel": (
        parse("""variant x(q: [B,T,H,D], k: [B,T,HKV,D], v: [B,T,HKV,DV], g: [B,T,HKV,D] float32) {
          return recall(q, write(state(), k, v, decay=g) {decay_kind = key}) {mode = state_softmax} }"""),
        "a readout with mode = state_softmax has no kernel yet",
    ),
    "first states in the call's dtype": (
        parse("""variant x(q: [B,T,H,D], k: [B,T,HKV,D], v: [B,T,HKV,DV], m: [B,1,HKV,D,DV]) {
          return recall(q, write(state(m), k, v)) }"""),
        "declare the input float32",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_kernel_says_so(case: str) -> None:
    variant, said = REFUSED[case]
    made = compile(variant, target="interpreter")
    with pytest.raises(PlanError, match=said):
        made.plan({**SIZES, "DX": 4}, "bfloat16")


@pytest.mark.parametrize("value", [0.0, -1e-4, -12.0, -torch.inf], ids=str)
@pytest.mark.parametrize("name", ["gated-delta", "undecayed-erase"])
def test_decays_at_their_ends(name: str, value: float) -> None:
    """The decays' own gradients too: that of −12 is some e^-12 of the others, and right; that of −inf is 0."""
    compiled = on(name, "interpreter")
    x = draw(compiled.variant, SIZES | {"T": 70, "B": 1})
    x["g"] = torch.full_like(x["g"], value)
    assert wrong_on(compiled, x, "float32") == []
