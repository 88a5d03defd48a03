"""Ladders in chunks: outputs and gradients against autograd through the oracle, exactly and in half precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from sparsec.backends.triton.resources import Resources
from sparsec.lower.fenwick import backward, forward, schedules
from sparsec.lower.lowered import Lowered
from sparsec.plan.states.fenwick_specs import LadderGrad
from sparsec.testing.kernels.ladder import Setting
from sparsec.testing.kernels.scratch import with_scratch
from sparsec.testing.triton.ahead import job, misfits, wide_dots
from sparsec.tile.interpreter import interpret
from sparsec.tile.schedule import Schedule, ScheduleError
from sparsec.tile.verify import verify

SETTINGS = {
    "additive": Setting("additive", length=75, rows=20, cols=24, batch=2, heads=2),
    "delta": Setting("delta", length=150, rows=20, cols=24, levels=9, batch=2, heads=2),
    "additive, gates at 0 and 1": Setting("additive", length=230, levels=9, hard=True),
    "delta, gates at 0 and 1": Setting("delta", length=230, levels=9, hard=True),
    "one additive chunk": Setting("additive", length=15, levels=5),
    "one delta chunk": Setting("delta", length=15, levels=5),
    "more levels than tokens": Setting("delta", length=20, levels=9),
    "no decay": Setting("additive", decays=False, length=100),
}


def errors(s: Setting, lowered: Lowered, names: tuple[str, ...]) -> dict[str, float]:
    """Root-mean-square errors over root-mean-square truth in the tile interpreter; fp32 is computed exactly."""
    mode: Literal["exact", "storage"] = "exact" if s.dtype == "float32" else "storage"
    x, want = s.draw(), s.truth()
    given = {n: y.double() for n, y in x.items()} if mode == "exact" else x
    made = {n: torch.full_like(given["do" if n == "o" else n[1:]], torch.nan) for n in names}
    every, dims = with_scratch(lowered, {**given, **made}, s.params, mode)
    for step in lowered.steps:
        verify(step.program)
        interpret(step.program, every, dims, mode)
    return {n: float((every[n].double() - want[n]).norm() / want[n].norm()) for n in names}


@pytest.mark.parametrize("name", SETTINGS)
def test_chunks_agree_with_the_oracle(name: str) -> None:
    s, schedule = SETTINGS[name], Schedule(order="chunk", rows=16, value_block=16)
    found = errors(s, forward.lower(s.ladder(), schedule), ("o",))
    found |= errors(s, backward.lower(s.grad(), schedule), s.gradients)
    assert all(e < 1e-12 for e in found.values()), found


def test_more_columns_of_values_than_of_keys() -> None:
    s, schedule = Setting("delta", cols=32), Schedule(order="chunk", rows=16, value_block=32)
    found = errors(s, forward.lower(s.ladder(), schedule), ("o",))
    found |= errors(s, backward.lower(s.grad(), schedule), s.gradients)
    assert all(e < 1e-12 for e in found.values()), found


@pytest.mark.parametrize("rule", ["additive", "delta"])
def test_half_precision(rule: str) -> None:
    s = Setting(rule, length=512, rows=64, cols=64, levels=10, dtype="bfloat16")
    schedule = Schedule(order="chunk", rows=64, value_block=64)
    found = errors(s, forward.lower(s.ladder(), schedule), ("o",))
    found |= errors(s, backward.lower(s.grad(), schedule), s.gradients)
    limits = {"o": 0.003, "dv": 0.003}
    assert all(error < limits.get(n, 0.008) for n, error in found.items()), found


@pytest.mark.parametrize("length", [15, 40, 150, 230])
def test_the_forwards_own_programs_leave_second_chunks_to_another(length: int) -> None:
    s = Setting("delta", length=length, levels=9, rows=20, cols=24)
    schedule = Schedule(order="chunk", rows=16, value_block=16, keep=True)
    lowered = backward.lower(s.grad(), schedule)
    own = {step.program.name.removeprefix("ladder_") for step in forward.lower(s.ladder(), schedule).steps}
    again = {step.program.name.removeprefix("grad_") for step in lowered.steps}
    assert own - again == {"ladder"} and "seconds" in again
    found = errors(s, lowered, s.gradients)
    assert all(e < 1e-12 for e in found.values()), found


@pytest.mark.parametrize("rule", ["additive", "delta"])
def test_what_nobody_asks_for_is_not_needed(rule: str) -> None:
    s = Setting(rule, length=75)
    spec = replace(s.grad(), grad_v=None, grad_beta=None, grad_decay=None, grad_gate=None)
    found = errors(s, backward.lower(spec, Schedule(order="chunk", rows=16)), ("dq", "dk"))
    assert all(e < 1e-12 for e in found.values()), found


def test_decays_per_key_channel_are_refused() -> None:
    s = Setting("additive").ladder()
    keyed = replace(s, writes=replace(s.writes, decay_kind="key"))
    with pytest.raises(ScheduleError, match="decays per key channel have no form in chunks"):
        forward.lower(keyed, Schedule(order="chunk", rows=16))


@pytest.mark.parametrize("rule", ["additive", "delta"])
def test_compiled_for_a_gpu(rule: str, tmp_path: Path) -> None:
    s = Setting(rule, rows=128, cols=128, heads=16, levels=9, dtype="bfloat16")
    spec: LadderGrad = s.grad()
    schedule = schedules.default(spec, "triton:sm_90")
    apart = backward.lower(spec, replace(schedule, keep=False)).steps
    every = (*forward.lower(s.ladder(), schedule).steps, *apart, *backward.lower(spec, schedule).steps)
    steps = {p.program.name + ("_apart" * (p in apart)): p for p in every}
    wanted = [(n, wide_dots(p.program), job(p.program, p.schedule, "sm_90")) for n, p in steps.items()]
    wrong = {n: x for n, x in misfits(wanted, "sm_90", tmp_path).items() if not isinstance(x, Resources)}
    assert not wrong
