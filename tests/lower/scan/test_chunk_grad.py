"""Gradients of chunked scans against autograd through the token-by-token form: exactly, and in half precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from sparsec.lower.scan.chunk import gradient as chunk_grad
from sparsec.lower.scan.token import gradient as token_grad
from sparsec.plan.states.scan_specs import Operand, ScanGrad
from sparsec.testing.kernels.scan import Setting, truth
from sparsec.testing.kernels.scratch import with_scratch
from sparsec.tile.interpreter import interpret
from sparsec.tile.schedule import Schedule, ScheduleError
from sparsec.tile.verify import verify

RULES = {
    "linear": Setting("additive"),
    "fading": Setting("additive", "scalar"),
    "weighted": Setting("additive", "scalar", beta=True),
    "delta": Setting("delta", beta=True),
    "unweighted delta": Setting("delta"),
    "gated delta": Setting("delta", "scalar", beta=True),
    "fading channels": Setting("additive", "key"),
    "weighted, fading channels": Setting("additive", "key", beta=True),
    "delta, fading channels": Setting("delta", "key", beta=True),
    "undecayed delta": Setting("delta", "key", beta=True, reads="undecayed"),
    "undecayed delta, one gate": Setting("delta", "scalar", reads="undecayed"),
    "erase": Setting("delta", "key", erase=True),
    "weighted erase": Setting("delta", "key", beta=True, erase=True),
    "undecayed erase": Setting("delta", "key", beta=True, erase=True, reads="undecayed"),
    "surprise": Setting("delta", "scalar", beta=True, surprise=True),
    "lasting erase": Setting("delta", "none", erase=True),
}
FORGETTING = [name for name, s in RULES.items() if s.decay == "key" or s.reads == "undecayed"]
"""States that forget: one that is erased but never fades gathers the roundings of bf16, 0.003 to 0.004."""

KEYED = [name for name, s in RULES.items() if s.decay == "key" or s.erase or s.reads == "undecayed"]
LIMITS = {"dv": 0.003}
OTHERS = 0.008


def found(s: Setting, schedule: Schedule, without: tuple[str, ...] = ()) -> dict[str, float]:
    """Root-mean-square errors over root-mean-square truth in the tile interpreter; fp32 is computed exactly."""
    mode: Literal["exact", "storage"] = "exact" if s.dtype == "float32" else "storage"
    given, out = s.draw(), {n: x for n, x in s.gradients().items() if n not in without}
    names = {"dv": "grad_v", "dbeta": "grad_beta", "dg": "grad_decay"}
    asked = {names[n]: None for n in without}
    spec = replace(s.grad(), **asked)  # type: ignore[arg-type]
    lowered, want = chunk_grad.lower(spec, schedule), truth(s, given)
    x = given
    if mode == "exact":
        x, out = ({n: t.double() for n, t in each.items()} for each in (given, out))
    every, dims = with_scratch(lowered, {**x, **out}, s.params, mode)
    for step in lowered.steps:
        verify(step.program)
        interpret(step.program, every, dims, mode)
    return {name: float((every[name].double() - want[name]).norm() / want[name].norm()) for name in out}


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("rule", RULES)
def test_chunks_agree_with_autograd(rule: str, splits: int) -> None:
    s = replace(RULES[rule], initial=True, final=True, length=75, rows=48, cols=24, batch=2, heads=2, state_heads=2)
    errors = found(s, Schedule(order="chunk", rows=16, value_block=16, splits=splits))
    assert all(e < 1e-12 for e in errors.values()), errors


@pytest.mark.parametrize("rule", ["weighted", "gated delta", *KEYED])
def test_gates_at_zero_and_one(rule: str) -> None:
    s = replace(RULES[rule], gates="hard", length=100, heads=1)
    errors = found(s, Schedule(order="chunk", rows=32, splits=2))
    assert all(e < 1e-12 for e in errors.values()), errors


@pytest.mark.parametrize("rule", ["fading", "delta", "gated delta", "surprise", *FORGETTING])
def test_half_precision(rule: str) -> None:
    s = replace(RULES[rule], rows=128, cols=64, length=256, heads=1, dtype="bfloat16", initial=True, final=True)
    errors = found(s, Schedule(order="chunk", rows=64, value_block=32, splits=2))
    assert all(error < LIMITS.get(name, OTHERS) for name, error in errors.items()), errors


@pytest.mark.parametrize("rule", ["fading channels", "delta, fading channels", "undecayed erase"])
def test_strong_gates(rule: str) -> None:
    s = replace(RULES[rule], rows=128, cols=32, length=192, heads=1, gates="strong", dtype="bfloat16")
    errors = found(s, Schedule(order="chunk", rows=64, splits=2))
    assert all(error < LIMITS.get(name, OTHERS) for name, error in errors.items()), errors


@pytest.mark.parametrize("rule", ["weighted", "gated delta"])
def test_what_nobody_asks_for_is_not_needed(rule: str) -> None:
    s = replace(RULES[rule], heads=1)
    errors = found(s, Schedule(order="chunk", rows=16, splits=2), without=("dv", "dbeta", "dg"))
    assert set(errors) == {"dq", "dk"} and max(errors.values()) < 1e-12, errors


ALIKE = {name: replace(s, heads=1) for name, s in RULES.items()}
UNREAD = replace(ALIKE["linear"].scan(), reads=())
OTHER = Operand("do", "float16")
REFUSED = [
    (replace(RULES["linear"], heads=2).grad(), "reads have 2 heads, states 1"),
    (replace(ALIKE["linear"].grad(), forward=UNREAD, grads=(), grad_q=()), "reads have no heads, states 1"),
    (replace(ALIKE["fading"], when="before").grad(), "a read before the own write"),
    (replace(ALIKE["fading"].grad(), grads=(OTHER,)), "the outputs' gradient is float16, chunks multiply float32;"),
    (
        replace(replace(ALIKE["fading"], dtype="bfloat16").grad(), grads=(OTHER,)),
        "the outputs' gradient is float16, chunks multiply bfloat16 or float32;",
    ),
    (
        replace(Setting("additive", "key", heads=1, dtype="bfloat16").grad(), grads=(Operand("do", "float32"),)),
        "the outputs' gradient is float32, chunks multiply bfloat16;",
    ),
    (Setting("delta", "key", heads=1, surprise=True).grad(), "have no chunk form that says what a write was surprised"),
]


@pytest.mark.parametrize(("spec", "sentence"), REFUSED)
def test_what_has_no_chunk_form_says_what_it_has(spec: ScanGrad, sentence: str) -> None:
    """Numbers and dtypes of the sentence are those of the spec, and the token recurrence takes what it refuses."""
    with pytest.raises(ScheduleError, match=sentence):
        chunk_grad.lower(spec, Schedule(order="chunk", rows=16))
    assert token_grad.lower(spec, Schedule(order="token", block=16, rows=1)).steps


def test_queries_of_other_dtypes_are_named() -> None:
    spec = replace(ALIKE["fading"], dtype="bfloat16").grad()
    read = replace(spec.forward.reads[0], q=Operand("asked", "float16"))
    spec = replace(spec, forward=replace(spec.forward, reads=(read,)))
    with pytest.raises(ScheduleError, match="asked is float16, keys are bfloat16"):
        chunk_grad.lower(spec, Schedule(order="chunk", rows=16))
