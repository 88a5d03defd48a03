"""Gradients printed with roles: the numbers of dense autograd in fp64 on a machine of threads, and refusals."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from sparsec.backends.triton.emit import emit
from sparsec.lower.registry import default, lower_kernel, space
from sparsec.plan.specs import BlockList, Piece, TiledAttention
from sparsec.scalar.expr import var
from sparsec.testing.gluon import machine, memory
from sparsec.testing.gluon.machine import run
from sparsec.testing.kernels.tiled import Tensors, TiledCase, grad_kv, grad_q, make_list, transposed, truth
from sparsec.tile.interpreter import interpret
from sparsec.tile.language import Program
from sparsec.tile.schedule import Schedule, ScheduleError

ROW, KEY = var("i"), var("j")
ROLES = Schedule(rows=128, block=64, phases="split", descriptors=True, warps=8, stages=2, registers=168, producer=True)
CAUSAL = Piece("k", "v", "TK", KEY <= ROW)
PLAIN = TiledAttention("attend", "q", (CAUSAL,), "out", "lse", 2, 1, 64, 64, 0.125, "bfloat16")
WINDOW = replace(PLAIN, pieces=(replace(CAUSAL, where=(KEY <= ROW) & (ROW - KEY < 100)),), head_dim=128, value_dim=128)
STRIPES = (KEY <= ROW) & ((KEY // 128) % 2 == 0)
LISTED = Piece(
    "k", "v", "TK", STRIPES, listed=BlockList("lists", STRIPES, (), "ids", "counts", "TK", 128, 128, False, 1)
)
SPECS = {"causal": PLAIN, "window": WINDOW, "a block list": replace(PLAIN, pieces=(LISTED,))}
Edit = Callable[[str], str]


def by_interpreter(lowered: object, x: Tensors, n: object) -> None:
    for step in lowered.steps:  # type: ignore[attr-defined]
        interpret(step.program, {t.name: x[t.name] for t in step.program.tensors}, n)  # type: ignore[arg-type]


def programs(case: TiledCase, stages: int) -> list[tuple[Program, Schedule]]:
    """Of queries, whose rows' products with outputs it makes too, and of keys and values."""
    queries = replace(ROLES, stages=stages)
    keys = replace(queries, rows=64, block=128)
    made = ((replace(grad_q(case), dots=True), queries), (grad_kv(case, 0), keys))
    return [(lower_kernel(spec, schedule).steps[0].program, schedule) for spec, schedule in made]


def gradients(spec: TiledAttention, stages: int = 2, edit: Edit = lambda text: text) -> tuple[Tensors, Tensors]:
    """Those of printed Gluon, and the truth."""
    case = TiledCase(spec, {"B": 2, "TQ": 150, "TK": 300, "q_offset": 150})
    x = case.draw()
    want = truth(case, x)
    x |= {
        "out": want["out"].bfloat16(),
        "lse": want["lse"].float(),
        "delta": torch.full_like(x["grad"][..., 0], 0).float(),
    }
    x |= {f"grad_{n}": torch.full_like(x[n], float("nan")) for n in "qkv"}
    for listed in (p.listed for p in spec.pieces if p.listed is not None):
        for one in (listed, transposed(listed)):
            make_list(one, Schedule(rows=128, block=128, warps=8), x, case.params, by_interpreter)
    for program, schedule in programs(case, stages):
        source = emit(program, schedule)
        assert "warp_specialize" in source
        run(edit(source), program, schedule, x, case.params)
    return x, want


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("name", SPECS)
def test_gradients_are_those_of_autograd(name: str, stages: int) -> None:
    x, want = gradients(SPECS[name], stages)
    for n in ("grad_q", "grad_k", "grad_v"):
        assert (x[n].double() - want[n]).norm() <= 4e-3 * want[n].norm(), n


def _without(barrier: str, text: str) -> str:
    return re.sub(rf"( +)mbarrier.wait\({barrier}.*", r"\1pass", text)


@pytest.mark.parametrize("barrier", ["held_full", "full", "free"])
def test_a_machine_sees_a_wait_that_is_not_there(barrier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LATE", 0.01)
    with pytest.raises((AssertionError, memory.Misused)):
        x, _ = gradients(PLAIN, 2, partial(_without, barrier))
        assert not any(x[f"grad_{n}"].isnan().any() for n in "qkv")


@pytest.mark.parametrize("change", [{"warps": 4}, {"stages": 1}])
def test_groups_need_their_warps_and_two_stages(change: dict[str, int]) -> None:
    case = TiledCase(PLAIN, {})
    schedule = replace(ROLES, rows=64, block=128, **change)  # type: ignore[arg-type]
    (step,) = lower_kernel(grad_kv(case, 0), schedule).steps
    with pytest.raises(ScheduleError, match="with roles need 8 warps"):
        emit(step.program, schedule)


def test_the_tuner_may_choose_roles_on_hopper_alone() -> None:
    spec = grad_kv(TiledCase(WINDOW, {}), 0)
    assert True in space(spec, "triton:sm_90")["producer"]
    assert "producer" not in space(spec, "triton:sm_80")


def test_lists_of_wide_heads_begin_with_roles() -> None:
    given = replace(LISTED.listed, given="lists")  # type: ignore[type-var]
    forward = replace(WINDOW, pieces=(replace(LISTED, listed=given),))
    found = default(grad_kv(TiledCase(forward, {}), 0), "triton:sm_90")
    assert found.has_roles and (found.rows, found.block, found.warps, found.stages) == (64, 128, 8, 2)
    assert not default(grad_kv(TiledCase(replace(forward, dtype="float16"), {}), 0), "triton:sm_90").producer
