"""States that share keys and queries by chunks, against the token-by-token form: exactly, and in half precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from sparsec.lower.lowered import Lowered
from sparsec.lower.scan.schedules import default, default_grad, lower, lower_grad
from sparsec.lower.scan.shared import groups, groups_back
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.testing.kernels.scan import Setting, truth
from sparsec.testing.kernels.scratch import with_scratch
from sparsec.tile.interpreter import interpret
from sparsec.tile.schedule import Schedule, ScheduleError
from sparsec.tile.verify import verify

GPU = "triton:sm_90"
RULES = {
    "fading": Setting("additive", "scalar"),
    "gated delta": Setting("delta", "scalar", beta=True),
    "delta, fading channels": Setting("delta", "key", beta=True),
    "undecayed erase": Setting("delta", "key", beta=True, erase=True, reads="undecayed"),
    "surprise": Setting("delta", "scalar", beta=True, surprise=True),
}


def ran(lowered: Lowered, x: dict[str, Tensor], s: Setting, mode: Literal["exact", "storage"]) -> dict[str, Tensor]:
    """Every tensor after the programs."""
    every, dims = with_scratch(lowered, x, s.params, mode)
    for step in lowered.steps:
        verify(step.program)
        interpret(step.program, every, dims, mode)
    return every


def errors(s: Setting, schedule: Schedule) -> dict[str, float]:
    """Of outputs and all gradients; fp32 is computed exactly."""
    given, exact = s.draw(), s.dtype == "float32"
    want, found = truth(s, given), dict[str, Tensor]()
    for lowered, made in (
        (lower(s.scan(), schedule), s.outputs(given["q"].dtype)),
        (lower_grad(s.grad(), schedule), s.gradients()),
    ):
        x = given | made
        x = {n: t.double() for n, t in x.items()} if exact else x
        every = ran(lowered, x, s, "exact" if exact else "storage")
        found |= {name: every[name] for name in made}
    return {n: float((t.double() - want[n]).norm() / want[n].norm()) for n, t in found.items()}


@pytest.mark.parametrize("heads", [4, 6])
@pytest.mark.parametrize("rule", RULES)
def test_groups_of_states_agree_with_autograd(rule: str, heads: int) -> None:
    s = replace(RULES[rule], initial=True, final=True, length=75, rows=48, cols=24, batch=2)
    s = replace(s, heads=heads, state_heads=heads, sharers=heads // 2)
    found = errors(s, Schedule(order="chunk", rows=16, value_block=16, splits=2))
    assert set(found) >= {"o", "ht", "dq", "dk", "dv"} and all(e < 1e-12 for e in found.values()), found


@pytest.mark.parametrize("rule", ["fading", "gated delta", "delta, fading channels"])
def test_half_precision(rule: str) -> None:
    s = replace(RULES[rule], rows=128, cols=64, length=192, heads=2, state_heads=2, sharers=2, dtype="bfloat16")
    found = errors(s, Schedule(order="chunk", rows=64, value_block=32, splits=2))
    assert all(e < (0.003 if name in ("o", "dv") else 0.008) for name, e in found.items()), found


def test_keys_lie_where_they_lay() -> None:
    s = replace(RULES["gated delta"], rows=128, cols=128, heads=32, state_heads=32, sharers=2, dtype="bfloat16")
    for lowered in (lower(s.scan(), default(s.scan(), GPU)), lower_grad(s.grad(), default_grad(s.grad(), GPU))):
        given = {t.name: t.shape[2] for step in lowered.steps for t in step.program.tensors if t.name in ("q", "k")}
        assert given == {"q": 16, "k": 16}


@pytest.mark.parametrize("change", [{}, {"decay": "key"}, {"erase": True, "decay": "key"}])
def test_they_go_by_chunks_on_a_gpu(change: dict[str, Any]) -> None:
    layer = Setting("delta", "scalar", True, heads=32, state_heads=32, rows=128, cols=128, dtype="bfloat16", sharers=2)
    s = replace(layer, **change)
    assert default(s.scan(), GPU).order == default_grad(s.grad(), GPU).order == "chunk"


def first_states(s: Setting, batched: bool) -> tuple[Scan, ScanGrad]:
    """The specs with initial states that nobody asks the gradient of."""
    scan, grad = s.scan(), s.grad()
    own = replace(scan, writes=replace(scan.writes, initial="h0", initial_batched=batched))
    return own, replace(grad, forward=own)


@pytest.mark.parametrize("rule", ["gated delta", "delta, fading channels"])
def test_queries_that_ask_one_state_begin_with_its_first(rule: str) -> None:
    s = replace(RULES[rule], heads=4, state_heads=2, initial=True, length=75, rows=48, cols=24, batch=2)
    x, want, schedule = s.draw(), truth(s, s.draw()), Schedule(order="chunk", rows=16, value_block=16, splits=2)
    scan, grad = first_states(replace(s, initial=False), True)
    for lowered, made in (
        (lower(scan, schedule), s.outputs(torch.float32)),
        (lower_grad(grad, schedule), s.gradients()),
    ):
        out = {n: t for n, t in made.items() if n != "dh0"}
        every = ran(lowered, {n: t.double() for n, t in (x | out).items()}, s, "exact")
        assert all(float((every[n].double() - want[n]).norm() / want[n].norm()) < 1e-12 for n in out)


@pytest.mark.parametrize("rule", ["gated delta", "delta, fading channels"])
def test_first_states_of_the_whole_batch_have_no_state_per_query(rule: str) -> None:
    s = replace(RULES[rule], heads=4, state_heads=2, rows=128, cols=128, dtype="bfloat16")
    scan, grad = first_states(s, False)
    assert "h0" not in groups(scan) | groups_back(grad)
    assert default_grad(grad, GPU).order == "token"
    assert default(scan, GPU).order == ("token" if rule != "gated delta" else "chunk")


@pytest.mark.parametrize("sharers", [1, 2])
@pytest.mark.parametrize("rule", [name for name in RULES if name != "surprise"])
def test_queries_that_ask_one_state_agree_with_autograd(rule: str, sharers: int) -> None:
    s = replace(RULES[rule], heads=4, state_heads=2, sharers=sharers, length=75, rows=48, cols=24, batch=2)
    found = errors(s, Schedule(order="chunk", rows=16, value_block=16, splits=2))
    assert set(found) >= {"o", "dq", "dk", "dv"} and all(e < 1e-12 for e in found.values()), found


def test_gradients_of_last_states_have_one_query_per_state() -> None:
    s = replace(RULES["gated delta"], heads=4, state_heads=2, final=True)
    with pytest.raises(ScheduleError, match="one read of as many heads"):
        lower_grad(s.grad(), Schedule(order="chunk", rows=16))
    assert default_grad(replace(s, rows=128, cols=128, dtype="bfloat16").grad(), GPU).order == "token"
