"""Kernels of one plan that leave work to one another: the same results to the last bit from fewer programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.lower.across.taken import made_by, only_load
from sparsec.lower.lowered import Lowered
from sparsec.plan.plan import Plan
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.runtime.across import apart, programs
from sparsec.runtime.compiled import Compiled
from sparsec.runtime.quick import Device, on_gpu
from sparsec.testing.triton.stub_driver import learned
from sparsec.tile.schedule import Schedule

SIZES: dict[str, Any] = {"B": 1, "T": 21, "H": 2, "HKV": 2, "D": 16, "DV": 16, "DX": 4}
CHUNKS = Schedule(order="chunk", rows=16, value_block=16, splits=1)
LEVELS: dict[str, object] = {"levels": 2, "parts": 2, "raw": True}


def chunked(preset: str, knobs: dict[str, object], sizes: dict[str, Any]) -> tuple[Compiled, dict[str, Tensor]]:
    """A variant whose scans go chunk by chunk, and inputs of it in bf16."""
    variant = sparsec.preset(preset, **knobs)
    x = sparsec.inputs(variant, dtype="bfloat16", **sizes)
    made = sparsec.compile(variant, target="interpreter")
    scans = [k for plan in plans(made, x) for k in plan.kernels if isinstance(k.spec, Scan | ScanGrad)]
    made.schedules = {k.name: CHUNKS for k in scans}
    return made, x


def plans(made: Compiled, x: dict[str, Tensor]) -> list[Plan]:
    """Without gradients; forward and backward with all of them."""
    dims, dtype = made.bind(x, None)
    halves = made.training.joint(dims, dtype, tuple(x)).split
    return [made.plan(dims, dtype), halves.forward, halves.backward]


def results(made: Compiled, x: dict[str, Tensor]) -> list[Tensor]:
    """The output with and without gradients, and all gradients."""
    leaves = {name: t.clone().requires_grad_() for name, t in x.items()}
    with torch.no_grad():
        plain = made(**x)
    out = made(**leaves)
    assert isinstance(out, Tensor) and isinstance(plain, Tensor)
    return [plain, out, *torch.autograd.grad(out.float().square().sum(), list(leaves.values()))]


@pytest.mark.parametrize(
    ("preset", "knobs", "sizes", "fewer"),
    [
        ("rsa", LEVELS, {}, [11, 8, 15]),
        ("rsa", LEVELS, {"D": 24, "DV": 40}, [10, 7, 15]),
        ("sse_gdn", {"k": 2, "raw": True}, {}, [1, 1, 1]),
        ("sse_gdn", {"parts": 3, "raw": True}, {}, [2, 2, 4]),
        ("sse_gdn", {"parts": 3}, {"D": 24, "DV": 40, "T": 37}, [2, 2, 4]),
        ("sse", {"parts": 3, "raw": True}, {"B": 2, "T": 33}, [2, 2, 4]),
    ],
)
def test_results_are_the_same_to_the_last_bit(
    preset: str, knobs: dict[str, object], sizes: dict[str, int], fewer: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and gradients, from fewer launches: without gradients, forward and backward."""
    found, counts = [], []
    for flag in ("1", "0"):
        monkeypatch.setenv("SPARSEC_WORK_APART", flag)
        made, x = chunked(preset, knobs, SIZES | sizes)
        dims, _ = made.bind(x, None)
        counts.append([sum(len(k.steps) for k in programs(made, plan, dims)[1].values()) for plan in plans(made, x)])
        found.append(results(made, x))
    assert all(a - b >= n for a, b, n in zip(*counts, fewer, strict=True)), counts
    for alone, together in zip(*found, strict=True):
        torch.testing.assert_close(together, alone, rtol=0, atol=0)


@pytest.mark.parametrize(("preset", "sums"), [("sse_gdn", {"total_grad_v"}), ("sse", set())])
def test_what_is_put_back_is_put_where_it_is_made(preset: str, sums: set[str]) -> None:
    """By the scan that makes it, or by the one whose branch it is added to, unless a delta rule reads that itself."""
    made, x = chunked(preset, {"parts": 3, "raw": True}, SIZES)
    dims, _ = made.bind(x, None)
    for plan in plans(made, x):
        joined, lowered = programs(made, plan, dims)
        steps = [s.program.name for p in lowered.values() for s in p.steps]
        assert {n for n in steps if n.startswith(("combine", "total"))} <= sums
        assert {n.split("_put_")[1] for n in steps if "_put_" in n} <= ({"grad_q2"} if preset == "sse" else set())
        scans = [k for k in joined.kernels if isinstance(k.spec, Scan | ScanGrad)]
        assert all(any(name in k.writes for k in scans) for name in joined.outputs if name in ("o", "grad_k2"))


@pytest.mark.parametrize("preset", ["rsa", "sse_gdn"])
def test_what_a_plan_gives_is_still_there(preset: str) -> None:
    """Outputs, what is saved for the backward among them, are written, and all that is read is there."""
    made, x = chunked(preset, LEVELS if preset == "rsa" else {"raw": True}, SIZES)
    dims, _ = made.bind(x, None)
    for plan in plans(made, x):
        joined, lowered = programs(made, plan, dims)
        there = {b.name for b in joined.buffers if b.role == "input"}
        for kernel in joined.kernels:
            own = {s.name for s in lowered[kernel.name].scratch}
            assert set(kernel.reads) <= there
            touched = {t.name for step in lowered[kernel.name].steps for t in step.program.tensors}
            assert touched <= own | {*kernel.reads, *kernel.writes}
            there |= {*kernel.writes}
        assert {*joined.outputs} <= there == {b.name for b in joined.buffers}


def test_other_lengths_build_nothing() -> None:
    made, x = chunked("rsa", LEVELS, SIZES)
    with torch.no_grad():
        made(**x)
        before = made.builds
        made(**sparsec.inputs(made.variant, dtype="bfloat16", **{**SIZES, "T": 33}))
    assert made.builds == before > 0


def test_what_kernels_share_has_a_place_in_the_memory_of_a_call() -> None:
    """As a GPU lays buffers out: what one kernel leaves for others is not written over before they have read it."""
    made, x = chunked("rsa", LEVELS, SIZES)
    tensors = [x[name] for name in made.names]
    ready = made.ready(tensors)
    gpu = Device(current=lambda: -1, stream=lambda index: 0, watched=lambda: False)
    outputs = on_gpu(ready, learned(made, ready, x), tensors, gpu).run(tensors)
    assert outputs is not None
    torch.testing.assert_close(outputs[0], ready.run(x)[ready.plan.outputs[0]], rtol=0, atol=0)


def test_sums_of_decays_are_shared_whatever_segments_there_are() -> None:
    """A program is another one's also where launch parameters differ that neither reads."""
    made, x = chunked("rsa", LEVELS, SIZES)
    dims, _ = made.bind(x, None)
    plan = plans(made, x)[0]
    made.schedules |= {k.name: replace(CHUNKS, splits=2) for k in plan.kernels if k.name.startswith("mass")}
    steps = [s.program.name for lowered in programs(made, plan, dims)[1].values() for s in lowered.steps]
    assert sum(name.endswith("_sums") for name in steps) == LEVELS["levels"]
    assert sum(name.endswith("_ends") for name in steps) == LEVELS["levels"]


def test_only_rows_are_worked_out_where_they_are_read() -> None:
    """No program with a sum or a loop is taken in, and none by a program that multiplies tiles."""
    made, x = chunked("rsa", LEVELS, SIZES)
    dims, _ = made.bind(x, None)
    plan = plans(made, x)[0]
    steps = {s.program.name: s.program for p in _apart(made, plan, dims).values() for s in p.steps}
    put = made_by(steps["scan_out_2_put_out_2"])
    assert put is not None and only_load(steps["combine_out_3"], put) is not None
    assert made_by(steps["mixture_mixture"]) is None and made_by(steps["scan_out_2_solve"]) is None
    values = made_by(steps["map_v_4"])
    assert values is not None and only_load(steps["scan_out_2_sort_scan_out_2_sorted_v"], values) is not None
    assert all(only_load(steps[name], values) is None for name in ("scan_out_2", "scan_out_2_ends") if name in steps)


def _apart(made: Compiled, plan: Plan, dims: Mapping[str, int]) -> dict[str, Lowered]:
    return apart(plan, {k.name: made.schedule(k, dims) for k in plan.kernels})
