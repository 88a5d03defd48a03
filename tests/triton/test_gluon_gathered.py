"""Printed Gluon of gathered attention, key-outer: groups that copy their own rows and walk from tile to tile."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsec.backends.triton.arguments import moved_rows, signature
from sparsec.backends.triton.build import LaunchError, arguments
from sparsec.backends.triton.compile import Compiled, Job, compile_all
from sparsec.backends.triton.emit import emit
from sparsec.frontends.preset import preset
from sparsec.lower.gathered import box_merge, key_outer
from sparsec.lower.lowered import Lowered
from sparsec.lower.registry import lower_kernel
from sparsec.plan.specs import GatheredAttention
from sparsec.runtime.compiled import compile
from sparsec.runtime.exported.module import Exported
from sparsec.runtime.kernel import BuiltKernel, lowered
from sparsec.runtime.predict import predict
from sparsec.scalar.expr import var
from sparsec.testing.gluon import machine, memory
from sparsec.testing.gluon.machine import run
from sparsec.testing.kernels.gathered import Sizes, attention, draw, truth
from sparsec.testing.kernels.scratch import with_scratch
from sparsec.tile.interpreter import interpret
from sparsec.tile.language import Tensor
from sparsec.tile.schedule import Schedule, ScheduleError

OTHERS = [p for p in os.environ.get("SPARSEC_TEST_TRITONS", "").split(os.pathsep) if p]
ROLES = Schedule(
    order="key_outer", rows=128, block=64, warps=8, stages=2, registers=168, descriptors=True, producer=True
)
PAST = var("j") <= var("i")
PER_HEAD = attention(2, 2, (64, 64), scope="head", slots=3, chunk=128, dtype="bfloat16", where=PAST)
SIZES = Sizes(tq=300, tk=500, offset=200)

SPECS: dict[str, tuple[GatheredAttention, Schedule]] = {
    "a list per head": (PER_HEAD, ROLES),
    "one tile of keys a chunk, three stages": (PER_HEAD, replace(ROLES, block=128, stages=3)),
    "a list for a group": (replace(PER_HEAD, scope="kv_head", slots=2), ROLES),
    "no maximum": (PER_HEAD, replace(ROLES, maximum=False)),
    "a first turn of its own, four stages": (PER_HEAD, replace(ROLES, peel=True, stages=4)),
    "a first turn and a last, no maximum": (PER_HEAD, replace(ROLES, peel=True, maximum=False)),
    "rows beneath the last product": (PER_HEAD, replace(ROLES, late=True)),
    "all of it": (PER_HEAD, replace(ROLES, late=True, peel=True, maximum=False)),
    "one group of warps": (PER_HEAD, replace(ROLES, rows=64, warps=4)),
    "three groups of warps": (PER_HEAD, replace(ROLES, rows=192, warps=12, registers=128)),
    "three groups, a list for a group of three": (
        replace(PER_HEAD, heads=6, scope="kv_head"),
        replace(ROLES, rows=192, warps=12, registers=128, maximum=False),
    ),
    "wider keys in fp16": (replace(PER_HEAD, head_dim=128, dtype="float16"), ROLES),
    "wider values, a bias": (replace(PER_HEAD, value_dim=128, bias=var("score", "float") * 0.5), ROLES),
}
WAITS = ("mbarrier.wait(keys_full", "mbarrier.wait(values_full", "async_copy.wait")


Change = Callable[[str], str]


def run_all(low: Lowered, x: dict[str, torch.Tensor], params: dict[str, int], change: Change | None) -> None:
    """All programs in the tile interpreter; where there is a ``change``, printed ones on the machine of threads."""
    for step in low.steps:
        program, mine = step.program, {t.name: x[t.name] for t in step.program.tensors}
        if change is not None and step.schedule.has_roles:
            run(change(emit(program, step.schedule)), program, step.schedule, mine, params)
        else:
            interpret(program, mine, params)


def prepared(spec: GatheredAttention, schedule: Schedule) -> tuple[Lowered, dict[str, torch.Tensor], dict[str, int]]:
    """The programs, inputs with scratch, and parameters."""
    low = lower_kernel(spec, schedule)
    x = draw(spec, SIZES, getattr(torch, spec.dtype))
    shape = (1, SIZES.tq, spec.heads)
    x |= {"out": torch.full((*shape, spec.value_dim), float("nan"), dtype=x["q"].dtype), "lse": torch.zeros(shape)}
    return low, *with_scratch(low, x, SIZES.params)


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each walks over several tiles, and some over none."""
    monkeypatch.setattr(box_merge, "PROCESSORS", 8)


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("name", SPECS)
def test_the_text_computes_what_the_program_does(name: str) -> None:
    spec, schedule = SPECS[name]
    low, x, params = prepared(spec, schedule)
    mine, theirs = ({n: t.clone() for n, t in x.items()} for _ in range(2))
    run_all(low, mine, params, str)
    run_all(low, theirs, params, None)
    assert mine["out"].isfinite().all()
    torch.testing.assert_close(mine["out"], theirs["out"], rtol=0, atol=4e-3)
    torch.testing.assert_close(mine["lse"], theirs["lse"], rtol=0, atol=1e-4)
    if spec.bias is None:
        want = truth(spec, x, SIZES.offset, lambda i, j, h: j <= i)["out"]
        assert (mine["out"].double() - want).norm() <= 4e-3 * want.norm()


@pytest.mark.usefixtures("few_programs")
def test_rows_out_of_range_are_read_again_with_a_maximum() -> None:
    spec, schedule = SPECS["no maximum"]
    low, x, params = prepared(spec, schedule)
    x["q"][:, 17:19, :2] *= 100
    run_all(low, x, params, str)
    assert x["attend_doubt"].tolist() == [[1, 0]]
    want = truth(spec, x, SIZES.offset, lambda i, j, h: j <= i)["out"]
    assert (x["out"].double() - want).norm() <= 4e-3 * want.norm()


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize(
    ("schedule", "line"),
    [
        *((s, line) for s in (ROLES, replace(ROLES, peel=True, late=True)) for line in (*WAITS, "mbarrier.wait(free")),
        *((SPECS["all of it"][1], line) for line in (*WAITS, "mbarrier.wait(keys_free")),  # a slot more hides the other
    ],
)
def test_a_machine_sees_a_wait_that_is_not_there(
    schedule: Schedule, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "LATE", 0.01)
    low, x, params = prepared(PER_HEAD, schedule)
    with pytest.raises((AssertionError, memory.Misused, RuntimeError)):
        run_all(low, x, params, lambda source: re.sub(rf"( +){re.escape(line)}.*", r"\1pass", source))
        assert not x["out"].isnan().any()


@pytest.mark.usefixtures("few_programs")
def test_a_machine_sees_rows_that_no_fence_follows() -> None:
    low, x, params = prepared(PER_HEAD, ROLES)
    wait, fence = "        async_copy.wait_group(0)\n", "        hopper.fence_async_shared()\n"
    for hasty in (wait, fence + wait):

        def change(source: str, hasty: str = hasty) -> str:
            return source.replace(wait + fence, hasty)

        with pytest.raises(memory.Misused, match="before a fence"):
            run_all(low, dict(x), params, change)


@pytest.mark.parametrize(("dim", "rows"), [(64, 192), (128, 128)])
def test_where_boxes_cannot_be_loaded_the_same_tiles_are_read_by_pointers(dim: int, rows: int, tmp_path: Path) -> None:
    """The index and the merge of such a kernel know its tiles."""
    layer = compile(preset("moba", block=512, k=3), "triton:sm_90", cache_dir=tmp_path)
    dims = {"B": 1, "T": 1024, "H": 8, "HKV": 2, "D": dim, "DV": dim, "q_offset": 0}
    kernel = next(k for k in layer.plan(dims, "bfloat16").kernels if isinstance(k.spec, GatheredAttention))
    schedule = layer.schedule(kernel, dims)
    assert schedule.has_roles and schedule.rows == rows
    low = lower_kernel(kernel.spec, schedule)
    built = BuiltKernel(kernel, schedule, layer.target, tmp_path)
    for step, (_, bind) in zip(low.steps, built._binds, strict=True):
        other = bind._other()  # type: ignore[attr-defined]
        assert (other.program.name, other.schedule.rows) == (step.program.name, step.schedule.rows)
        assert not other.schedule.descriptors and other.schedule.warps in (1, 2, 4, 8)
        assert "gluon" not in emit(other.program, other.schedule)


def test_rows_are_copied_only_where_pieces_of_16_bytes_begin(tmp_path: Path) -> None:
    """Copies count in such pieces: other strides would read other rows."""
    layer = compile(preset("moba", block=512, k=3), "triton:sm_90", cache_dir=tmp_path)
    dims = {"B": 1, "T": 1024, "TQ": 1024, "TK": 1024, "H": 8, "HKV": 2, "D": 128, "DV": 128, "q_offset": 0}
    kernel = next(k for k in layer.plan(dims, "bfloat16").kernels if isinstance(k.spec, GatheredAttention))
    schedule = layer.schedule(kernel, dims)
    program = lower_kernel(kernel.spec, schedule).steps[3].program
    assert moved_rows(program, schedule) == "q"
    wide = torch.zeros(1, 1024, 8, 132, dtype=torch.bfloat16)
    for q in (wide[..., :128], wide.flatten()[1 : 1 + 1024 * 1024].view(1, 1024, 8, 128)):
        with pytest.raises(LaunchError, match=r"q: address \d+, strides .*; rows are copied in pieces of 16 bytes"):
            arguments(program, schedule, {t.name: q if t.name == "q" else tensor_like(t) for t in program.tensors}, {})


def tensor_like(t: Tensor) -> torch.Tensor:
    """A tensor of as many dimensions, of one element each but the last."""
    shape = [1] * (t.rank - 1) + [t.shape[-1] if isinstance(t.shape[-1], int) else 8]
    return torch.zeros(shape, dtype=getattr(torch, t.dtype))


def test_only_walks_have_rows_that_are_no_power_of_two() -> None:
    three = replace(ROLES, rows=192, warps=12)
    assert lower_kernel(PER_HEAD, three).steps
    for schedule in (replace(three, producer=False), replace(three, rows=160), replace(three, order="tile_union")):
        with pytest.raises(ScheduleError, match="powers of two from 16 on do"):
            lower_kernel(PER_HEAD, schedule)


@pytest.mark.parametrize(("heads", "rows"), [(4, 64), (65, 128)])
def test_packed_and_exported_tiles_hold_the_heads_of_a_key_head(heads: int, rows: int) -> None:
    layer = compile(preset("moba", block=512, k=3), "triton:sm_90")
    dims = {"B": 1, "T": 1024, "TQ": 1024, "TK": 1024, "H": heads, "HKV": 1, "D": 64, "DV": 64, "q_offset": 0}
    plan = layer.packed.plan(layer.plan(dims, "bfloat16", packed=True))
    kernel = next(k for k in plan.kernels if isinstance(k.spec, GatheredAttention))
    assert layer.schedule(kernel, dims).has_roles
    attend = next(s for s in lowered(kernel, layer.schedule(kernel, dims))[1].steps if s.program.name == kernel.name)
    assert (attend.schedule.rows, attend.schedule.warps, attend.schedule.has_roles) == (rows, rows // 16, False)
    (own,) = (s for s in Exported(layer, dims, "bfloat16").steps if s.program.name == kernel.name)
    assert (own.schedule.rows, own.schedule.has_roles) == (rows, False)


@pytest.mark.parametrize(("slots", "rows"), [(3, 128), (8, 64)])
def test_a_merge_of_alike_warps_has_tiles_of_its_own(slots: int, rows: int) -> None:
    spec = replace(PER_HEAD, head_dim=128, value_dim=128, chunk=512, slots=slots, own_first=True)
    merge = lower_kernel(spec, replace(key_outer.default(spec, "triton:sm_90"), merge="alike")).steps[-1]
    assert merge.program.name == "attend_merge" and not merge.schedule.producer
    assert (merge.schedule.rows, merge.schedule.warps) == (rows, rows // 16)


@pytest.mark.parametrize("dim", [64, 128])
def test_predictions_count_the_tiles_that_are_walked_over(dim: int) -> None:
    layer = compile(preset("moba", block=512, k=3), "triton:sm_90")
    dims = {"B": 1, "T": 16384, "TQ": 16384, "TK": 16384, "H": 32, "HKV": 8, "D": dim, "DV": dim, "q_offset": 0}
    kernel = next(k for k in layer.plan(dims, "bfloat16").kernels if isinstance(k.spec, GatheredAttention))
    schedule = layer.schedule(kernel, dims)
    found = predict(kernel, lower_kernel(kernel.spec, schedule), schedule, layer.target, dims)
    products = 4 * dim * 16384 * 32 * 2 * 512
    own = 4 * dim * 16384 * 32 * (128 + 256 + 384 + 512) // 4  # 128 tokens of a chunk read it up to their last
    assert products + own < found.work.dots < 1.02 * (products + own)


@pytest.mark.slow
@pytest.mark.parametrize("other", [None, *OTHERS])
def test_an_h100_gets_unserialised_products(other: str | None, tmp_path: Path) -> None:
    wide = replace(PER_HEAD, head_dim=128, value_dim=128, chunk=512)
    kinds = [(PER_HEAD, replace(ROLES, block=128)), (wide, replace(ROLES, block=128)), (wide, replace(ROLES, stages=4))]
    kinds.append((wide, replace(ROLES, block=128, maximum=False)))
    kinds.append((wide, replace(ROLES, block=128, maximum=False, peel=True)))
    kinds.append((wide, replace(ROLES, block=128, maximum=False, peel=True, late=True)))
    kinds.append((PER_HEAD, key_outer.default(replace(PER_HEAD, chunk=512), "triton:sm_90")))
    jobs = []
    for spec, schedule in kinds:
        step = next(s for s in lower_kernel(spec, schedule).steps if s.schedule.has_roles)
        types = signature(step.program, schedule)
        how = (schedule.warps, schedule.stages, schedule.registers)
        jobs.append(Job(emit(step.program, schedule), step.program.name, types, "sm_90", *how))
    for made, (_, schedule) in zip(compile_all(jobs, tmp_path, python_path=other), kinds, strict=True):
        assert isinstance(made, Compiled), made
        assert made.resources.wgmma and made.resources.spills == 0 and made.resources.registers == schedule.registers
        second = schedule.peel and schedule.late and not schedule.maximum
        waits = (3 + schedule.peel + 2 * second) * schedule.rows // 64
        assert made.text.count("wgmma.wait_group.sync.aligned") == waits, "products are serialised"
