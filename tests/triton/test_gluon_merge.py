"""The merge of key-outer attention whose warps have roles: against fp64, the tile interpreter; what an H100 gets."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsec.autotune.space import Space
from sparsec.backends.triton.arguments import signature
from sparsec.backends.triton.compile import Compiled, Job, compile_all
from sparsec.backends.triton.emit import emit
from sparsec.lower.gathered import box_merge, key_outer, known, schedules
from sparsec.lower.lowered import Lowered
from sparsec.lower.registry import lower_kernel
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.expr import var
from sparsec.testing.gluon import machine, memory
from sparsec.testing.gluon.machine import run
from sparsec.testing.kernels.gathered import Sizes, attention, draw, truth
from sparsec.testing.kernels.scratch import with_scratch
from sparsec.tile.interpreter import interpret
from sparsec.tile.schedule import Schedule, ScheduleError

OTHERS = [p for p in os.environ.get("SPARSEC_TEST_TRITONS", "").split(os.pathsep) if p]
ROLES = Schedule(
    order="key_outer", rows=128, block=64, warps=8, stages=2, registers=168, descriptors=True, producer=True,
    merge="roles",
)  # fmt: skip
WALK = replace(ROLES, merge="walk")
PAST = var("j") <= var("i")
PER_HEAD = attention(
    2, 2, (64, 64), scope="head", slots=3, chunk=128, dtype="bfloat16", where=PAST, own_first=True
)  # fmt: skip
SIZES = Sizes(tq=300, tk=500, offset=200, own=1.0)
BEYOND = Sizes(tq=150, tk=300, offset=300, own=1.0)
BEFORE = Sizes(tq=300, tk=260, offset=-40, own=1.0)

CASES: dict[str, tuple[GatheredAttention, Schedule, Sizes]] = {
    "a list per head": (PER_HEAD, ROLES, SIZES),
    "a list for a group, two slots": (replace(PER_HEAD, scope="kv_head", slots=2), ROLES, SIZES),
    "one group of heads, no maximum": (replace(PER_HEAD, kv_heads=1), replace(ROLES, maximum=False), SIZES),
    "wider values": (replace(PER_HEAD, value_dim=128), ROLES, SIZES),
    "wider keys in fp16, a sink": (replace(PER_HEAD, head_dim=128, dtype="float16", sink="zero"), ROLES, SIZES),
    "a first turn of its own": (PER_HEAD, replace(ROLES, peel=True), SIZES),
    "two sequences": (PER_HEAD, ROLES, replace(SIZES, tq=100, offset=400, batch=2)),
    "tokens after the last key": (PER_HEAD, ROLES, BEYOND),
    "tokens before the first key": (replace(PER_HEAD, chunk=64), ROLES, BEFORE),
    "a walk, a list per head": (PER_HEAD, WALK, replace(SIZES, tq=700, tk=900)),
    "a walk over few tiles, two slots": (replace(PER_HEAD, slots=2, head_dim=128, value_dim=128), WALK, SIZES),
    "a walk, wider values": (replace(PER_HEAD, value_dim=128), WALK, replace(SIZES, tq=500, tk=700)),
    "a walk, tokens after the last key": (PER_HEAD, WALK, replace(BEYOND, tq=700)),
    "a walk, tokens before the first key": (replace(PER_HEAD, chunk=64), WALK, replace(BEFORE, tq=700, offset=-300)),
    "a walk, two sequences, a sink": (
        replace(PER_HEAD, sink="zero"),
        WALK,
        replace(SIZES, tq=300, offset=400, batch=2),
    ),
}


def ordered(spec: GatheredAttention, n: Sizes) -> dict[str, Tensor]:
    """Inputs whose lists begin with a token's own chunk where there is one."""
    x, position = draw(spec, n, getattr(torch, spec.dtype)), torch.arange(n.tq) + n.offset
    mine, none = (position.clamp_min(0) // spec.chunk)[None, :, None, None], (position < 0)[None, :, None, None]
    ids = x["ids"].masked_fill(none, -1)
    x["ids"] = ids.gather(-1, (ids != mine).int().sort(dim=-1, stable=True).indices)
    return x


def prepared(
    spec: GatheredAttention, schedule: Schedule, n: Sizes
) -> tuple[Lowered, dict[str, Tensor], dict[str, int]]:
    """The programs, inputs with scratch, and parameters."""
    low, x, shape = lower_kernel(spec, schedule), ordered(spec, n), (n.batch, n.tq, spec.heads)
    x |= {"out": torch.full((*shape, spec.value_dim), float("nan"), dtype=x["q"].dtype), "lse": torch.zeros(shape)}
    return low, *with_scratch(low, x, n.params)


def merged(low: Lowered, x: dict[str, Tensor], params: dict[str, int], change: Callable[[str], str] | None) -> None:
    """All programs in the tile interpreter; with a ``change``, the printed merge on the machine of threads."""
    for step in low.steps:
        program, mine = step.program, {t.name: x[t.name] for t in step.program.tensors}
        if change is not None and step is low.steps[-1]:
            run(change(emit(program, step.schedule)), program, step.schedule, mine, params)
        else:
            interpret(program, mine, params)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Walks over several tiles."""
    monkeypatch.setattr(box_merge, "PROCESSORS", 6)


@pytest.mark.parametrize("name", CASES)
def test_the_text_computes_what_the_program_does(name: str) -> None:
    spec, schedule, n = CASES[name]
    low, x, params = prepared(spec, schedule, n)
    assert low.steps[-1].schedule.has_roles
    for tensor in ("attend_partial", "attend_partial_lse", "attend_partial_scale"):
        x[tensor].fill_(float("nan"))  # what nobody writes
    mine, theirs = ({k: t.clone() for k, t in x.items()} for _ in range(2))
    merged(low, mine, params, str)
    merged(low, theirs, params, None)
    torch.testing.assert_close(mine["out"], theirs["out"], rtol=0, atol=4e-3)
    torch.testing.assert_close(mine["lse"], theirs["lse"], rtol=0, atol=1e-4)
    want = truth(spec, x, n.offset, lambda i, j, h: j <= i)
    assert (theirs["out"].double() - want["out"]).norm() <= 4e-3 * want["out"].norm()
    assert (mine["out"].double() - want["out"]).norm() <= 4e-3 * want["out"].norm()


WAITS = ("mbarrier.wait(late_full", "mbarrier.wait(queries_full", "tma.store_wait")
FREED = ("mbarrier.wait(late_free", "mbarrier.wait(keys_free", "mbarrier.wait(values_free", "mbarrier.wait(values_full")


@pytest.mark.parametrize(
    ("schedule", "line"), [*((ROLES, line) for line in WAITS), *((WALK, line) for line in (*WAITS, *FREED))]
)
def test_a_machine_sees_a_wait_that_is_not_there(
    schedule: Schedule, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "LATE", 0.01)
    low, x, params = prepared(PER_HEAD, schedule, replace(SIZES, tq=900, tk=1100) if schedule is WALK else SIZES)
    with pytest.raises((AssertionError, memory.Misused, RuntimeError)):
        merged(low, x, params, lambda source: re.sub(rf"( +){re.escape(line)}.*", r"\1pass", source))
        assert not x["out"].isnan().any()


@pytest.mark.parametrize("dim", [64, 128])
def test_it_is_the_default_where_few_chunks_join_a_heads_own(dim: int) -> None:
    spec = replace(PER_HEAD, head_dim=dim, value_dim=dim, chunk=512)
    assert schedules.space(spec, "triton:sm_90")["merge"] == ("alike", "roles", "walk")
    first = schedules.default(spec, "triton:sm_90")
    assert (first.merge, first.peel, first.rows, first.late) == ("walk", True, 192 if dim == 64 else 128, True)
    assert lower_kernel(spec, first).steps[-1].schedule.has_roles
    for other in (replace(spec, slots=8), replace(spec, scope="kv_head"), replace(spec, own_first=False)):
        mine = schedules.default(other, "triton:sm_90")
        assert (mine.merge, mine.peel, mine.rows) == ("alike", True, first.rows)
        assert not lower_kernel(other, mine).steps[-1].schedule.has_roles


def test_both_merges_are_tried_where_few_chunks_join_a_rows_own() -> None:
    spec = replace(PER_HEAD, head_dim=128, value_dim=128, chunk=512)
    tried = known.forward(spec, "triton:sm_90")
    assert [(s.merge, s.peel, s.late) for s in tried[1:3]] == [("roles", True, True), ("alike", True, True)]
    assert [(s.rows, s.peel) for s in tried[3:5]] == [(192, True), (128, False)]
    for schedule in tried:
        Space(key_outer.default(spec, "triton:sm_90"), schedules.space(spec, "triton:sm_90")).params(schedule)
    assert schedules.space(replace(spec, slots=8), "triton:sm_90")["merge"] == ("alike",)
    with pytest.raises(ScheduleError, match="merge='alike'"):
        lower_kernel(replace(spec, slots=8), ROLES)
    assert not box_merge.wanted(spec, replace(ROLES, producer=False))


def test_where_boxes_cannot_be_loaded_rows_lie_where_they_did() -> None:
    spec = replace(PER_HEAD, head_dim=128, value_dim=128, chunk=512)
    step = lower_kernel(spec, replace(ROLES, block=128)).steps[-1]
    plain = emit(step.program, replace(step.schedule, descriptors=False))
    assert "gluon" not in plain and "_desc" not in plain and "attend_merge" in plain


def built(
    specs: list[tuple[GatheredAttention, Schedule]], other: str | None, folder: Path
) -> list[tuple[Compiled, Schedule]]:
    """The merges of these kernels as an H100 gets them."""
    jobs, own = [], []
    for spec, schedule in specs:
        step = lower_kernel(spec, replace(schedule, block=128)).steps[-1]
        own.append(step.schedule)
        types, how = signature(step.program, own[-1]), (own[-1].warps, own[-1].stages, own[-1].registers)
        jobs.append(Job(emit(step.program, own[-1]), step.program.name, types, "sm_90", *how))
    found = compile_all(jobs, folder, python_path=other)
    assert all(isinstance(made, Compiled) for made in found), found
    return [(made, s) for made, s in zip(found, own, strict=True) if isinstance(made, Compiled)]


WIDE = replace(PER_HEAD, head_dim=128, value_dim=128, chunk=512)


@pytest.mark.slow
@pytest.mark.parametrize("other", [None, *OTHERS])
def test_an_h100_gets_unserialised_products(other: str | None, tmp_path: Path) -> None:
    found = built([(PER_HEAD, ROLES), (WIDE, ROLES), (WIDE, replace(ROLES, peel=True))], other, tmp_path)
    for (made, _), waits in zip(found, (3, 3, 4), strict=True):
        assert made.resources.wgmma and made.resources.spills == 0 and made.resources.registers == 128
        assert made.text.count("wgmma.wait_group.sync.aligned") == waits, "products are serialised"


@pytest.mark.slow
@pytest.mark.parametrize("other", [None, *OTHERS])
def test_walks_of_narrow_heads_fit_registers_and_those_of_wide_ones_shared_memory(
    other: str | None, tmp_path: Path
) -> None:
    for made, schedule in built([(PER_HEAD, WALK), (WIDE, WALK)], other, tmp_path):
        assert schedule.peel and made.resources.wgmma and made.resources.registers == 168
        assert made.resources.shared <= 227 * 1024
        assert made.resources.spills == 0 or (made.triton.startswith("3.9") and made.resources.spills <= 40)
        assert made.text.count("wgmma.wait_group.sync.aligned") == 8
