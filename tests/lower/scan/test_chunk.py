"""Chunked scans against the token-by-token truth: exactly, in half precision, under Triton's interpreter, compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from sparsec.backends.triton.build import MOST_PROGRAMS
from sparsec.backends.triton.compile import Compiled, compile_all
from sparsec.backends.triton.resources import Resources
from sparsec.lower.scan import schedules
from sparsec.lower.scan.chunk import forward as chunk
from sparsec.lower.scan.chunk import gradient as chunk_grad
from sparsec.lower.scan.keyed.fades import DEEPEST, GROUP
from sparsec.plan.states.scan_specs import Operand, Read, Scan, Writes
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.fn import Fn
from sparsec.testing.kernels.scan import Setting, truth
from sparsec.testing.kernels.scratch import with_scratch
from sparsec.testing.triton.ahead import job, misfits, wide_dots
from sparsec.tile.build import reachable
from sparsec.tile.interpreter import interpret
from sparsec.tile.language import TileOp
from sparsec.tile.scalars import grid_of
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
    "undecayed erase": Setting("delta", "key", erase=True, reads="undecayed"),
    "lasting erase": Setting("delta", "none", erase=True),
    "surprise": Setting("delta", "scalar", beta=True, surprise=True),
}
FORGETTING = [name for name, s in RULES.items() if s.decay == "key" or s.reads == "undecayed"]
"""States that forget: one that is erased but never fades gathers the roundings of bf16, 0.003 to 0.004."""

KEYED = [name for name, s in RULES.items() if s.decay == "key" or s.erase or s.reads == "undecayed"]
ODD: dict[str, Any] = {
    "initial": True,
    "final": True,
    "length": 75,
    "rows": 48,
    "cols": 80,
    "batch": 2,
    "heads": 2,
    "state_heads": 1,
}
BF16 = 0.003
HALF = 228 * 1024 // 2 - 1024
"""Bytes of shared memory for each of two programs on a processor of an H100, less what each takes by itself."""


def found(s: Setting, schedule: Schedule, scratch: dict[str, torch.Tensor] | None = None) -> dict[str, float]:
    """Root-mean-square errors over root-mean-square truth in the tile interpreter; fp32 is computed exactly.

    All buffers end up in ``scratch``.
    """
    mode: Literal["exact", "storage"] = "exact" if s.dtype == "float32" else "storage"
    lowered, given = chunk.lower(s.scan(), schedule), s.draw()
    x = given if mode == "storage" else {name: t.double() for name, t in given.items()}
    out = s.outputs(torch.float64 if mode == "exact" else getattr(torch, s.dtype))
    out |= {n: out[n].double() for n in ("ht", "u") if n in out and mode == "exact"}
    every, dims = with_scratch(lowered, {**x, **out}, s.params, mode)
    for step in lowered.steps:
        verify(step.program)
        interpret(step.program, every, dims, mode)
    want = truth(s, given)
    if scratch is not None:
        scratch |= every
    return {name: float((every[name].double() - want[name]).norm() / want[name].norm()) for name in out}


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("rule", RULES)
def test_chunks_agree_with_tokens(rule: str, splits: int) -> None:
    s = replace(RULES[rule], **ODD)
    s = replace(s, state_heads=2) if rule in KEYED else s
    errors = found(s, Schedule(order="chunk", rows=16, value_block=32, splits=splits))
    assert all(e < 1e-12 for e in errors.values()), errors


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("rule", ["weighted", "gated delta", *KEYED])
def test_gates_at_zero_and_one(rule: str, when: str) -> None:
    s = replace(RULES[rule], gates="hard", when=when, length=100, final=True, heads=1)
    for splits in (1, 2):
        errors = found(s, Schedule(order="chunk", rows=32, splits=splits))
        assert all(e < 1e-12 for e in errors.values()), errors


def test_segments_are_as_many_as_the_device_and_the_sequence_take() -> None:
    s = replace(RULES["gated delta"], heads=16, state_heads=16, rows=128, cols=128, dtype="bfloat16")
    params = dict(chunk.lower(s.scan(), Schedule(order="chunk", value_block=64, splits=8)).params)

    def segments(batch: int, length: int) -> object:
        return evaluate(params["SCAN_SEGMENTS"], {"B": batch, "N": length})

    assert [segments(1, 16384), segments(3, 16384), segments(64, 16384)] == [8, 2, 1]
    assert [segments(1, 300), segments(1, 1)] == [2, 1]
    params = dict(chunk.lower(s.scan(), Schedule(order="chunk", value_block=128, warps=8, splits=16)).params)
    assert [segments(1, 16384), segments(2, 16384)] == [8, 4]


@pytest.mark.parametrize("final", [False, True])
def test_walks_over_segments_take_no_exponentials(final: bool) -> None:
    """Of a gated delta rule, forward and before its backward: factors of decays are in memory."""
    s = replace(RULES["gated delta"], final=final, state_heads=2, dtype="bfloat16")
    schedule = Schedule(order="chunk", rows=32, value_block=16, splits=3)
    steps = [*chunk.lower(s.scan(), schedule).steps, *chunk_grad.lower(s.grad(), schedule).steps]
    programs = {step.program.name: step.program for step in steps}
    for program in [programs[name] for name in ("scan_ends", "grad_ends", "grad_states")]:
        assert not any(n.op is TileOp.MAP and n.attrs[0] is Fn.EXP2 for n in reachable(program.effects))
        assert {"faded", "lasting"} <= {t.name.rsplit("_", 1)[-1] for t in program.tensors}


def test_a_grid_has_room_for_any_number_of_heads_and_chunks() -> None:
    """Where channels fade by themselves, what there are many of is in the dimension without a limit."""
    s = replace(RULES["delta, fading channels"], heads=16, state_heads=16, dtype="bfloat16")
    params, schedule = {"B": 4097, "N": 16 * 70_000}, Schedule("chunk", 16, value_block=16, splits=2)
    for lowered in (chunk.lower(s.scan(), schedule), chunk_grad.lower(s.grad(), schedule)):
        known = params | {name: int(evaluate(value, params)) for name, value in lowered.params}
        grids = {step.program.name: grid_of(step.program, known) for step in lowered.steps}
        assert not {name: grid for name, grid in grids.items() if max(grid[1:], default=0) > MOST_PROGRAMS}


@pytest.mark.parametrize("rule", ["fading", "gated delta", "fading channels", "delta, fading channels", "erase"])
def test_segments_that_nothing_passes(rule: str) -> None:
    """Neither first states nor last ones: some transitions are not worked out."""
    s = replace(RULES[rule], length=150, rows=32, cols=48, heads=1, state_heads=1)
    scratch: dict[str, torch.Tensor] = {}
    errors = found(s, Schedule(order="chunk", rows=16, value_block=16, splits=3), scratch)
    assert all(e < 1e-12 for e in errors.values()), errors
    ends = scratch["scan_ends"][0, 0]
    made, unit = ends[:, :, :48], torch.eye(32, dtype=ends.dtype)
    assert made[0].any() and made[1].any() and not made[2].any()
    assert s.rule != "delta" or [torch.equal(p, unit) for p in ends[:, :, 48:]] == [True, False, True]


@pytest.mark.parametrize("rule", ["fading", "fading channels", "delta, fading channels", "erase"])
def test_segments_have_columns_of_their_own(rule: str) -> None:
    """Two groups of warps for outputs, one for what segments make of a state."""
    s = replace(RULES[rule], length=200, rows=128, cols=128, heads=1, state_heads=1, final=True)
    schedule = Schedule(order="chunk", rows=32, value_block=128, warps=8, splits=3)
    steps = {step.program.name: step.schedule for step in chunk.lower(s.scan(), schedule).steps}
    assert (steps["scan_ends"].warps, steps["scan"].warps) == ((8, 8) if s.erase else (4, 8))
    errors = found(s, schedule)
    assert all(e < 1e-12 for e in errors.values()), errors


def test_a_delta_rule_solves_while_it_walks() -> None:
    """Channels that fade by themselves: forward no product of the inverse is stored; erase vectors still need one."""

    def programs(rule: str) -> set[str]:
        s = replace(RULES[rule], heads=1, state_heads=1)
        return {step.program.name for step in chunk.lower(s.scan(), Schedule(order="chunk", rows=16)).steps}

    assert "scan_answers" not in programs("delta, fading channels")
    assert "scan_answers" in programs("erase")


def test_one_segment_that_nothing_passes() -> None:
    """As many segments as the sequence takes: one, whose last state is asked for."""
    s = replace(RULES["gated delta"], length=20, final=True)
    errors = found(s, Schedule(order="chunk", rows=16, splits=4))
    assert all(e < 1e-12 for e in errors.values()), errors


@pytest.mark.parametrize("length", [1, 15, 16, 17])
def test_short_sequences(length: int) -> None:
    s = replace(RULES["gated delta"], length=length, initial=True, final=True)
    errors = found(s, Schedule(order="chunk", rows=16, splits=4))
    assert all(e < 1e-12 for e in errors.values()), errors


@pytest.mark.parametrize("rule", ["fading", "delta", "gated delta", *FORGETTING])
def test_half_precision(rule: str) -> None:
    s = replace(RULES[rule], rows=128, cols=64, length=256, heads=1, dtype="bfloat16", initial=True, final=True)
    errors = found(s, Schedule(order="chunk", rows=64, value_block=32, splits=2))
    assert all(e < BF16 for e in errors.values()), errors


def test_narrow_states_that_keep_everything() -> None:
    """The error of bf16 outputs was 3.2e-3 with scores rounded once."""
    s = replace(RULES["delta"], rows=32, cols=32, length=512, heads=1, dtype="bfloat16")
    errors = found(s, Schedule(order="chunk", rows=64, value_block=32, splits=1))
    assert all(e < BF16 for e in errors.values()), errors


@pytest.mark.parametrize("rule", ["fading channels", "delta, fading channels", "undecayed erase"])
def test_strong_gates(rule: str) -> None:
    """Some chunks fade by less than products of tiles bear, some by more."""
    s = replace(RULES[rule], rows=128, cols=32, length=192, heads=1, gates="strong")
    errors = found(s, Schedule(order="chunk", rows=64, splits=2))
    assert all(e < 1e-12 for e in errors.values()), errors
    errors = found(replace(s, dtype="bfloat16"), Schedule(order="chunk", rows=64, splits=2))
    assert all(e < BF16 for e in errors.values()), errors


@pytest.mark.parametrize("rule", ["fading channels", "delta, fading channels"])
def test_strong_gates_in_more_chunks_than_a_program_sees_through(rule: str) -> None:
    s = replace(RULES[rule], rows=64, cols=16, length=64 * 2 * GROUP + 5, heads=1, batch=2, gates="strong")
    scratch: dict[str, torch.Tensor] = {}
    errors = found(s, Schedule(order="chunk", rows=64, splits=2), scratch)
    assert all(e < 1e-12 for e in errors.values()), errors
    deep = (scratch["scan_totals"].amin(-1) < DEEPEST).flatten(0, 1)
    assert deep[:, :GROUP].any() and deep[:, -GROUP:].any() and not deep.all()


def test_what_has_no_chunk_form() -> None:
    with pytest.raises(ScheduleError, match="use order 'token'"):
        chunk.lower(replace(RULES["fading"], decay="full").scan(), Schedule(order="chunk", rows=16))
    with pytest.raises(ScheduleError, match="one read per state"):
        chunk.lower(replace(RULES["fading channels"], heads=2).scan(), Schedule(order="chunk", rows=16))
    with pytest.raises(ScheduleError, match="triangular solve takes up to 64"):
        chunk.lower(RULES["delta"].scan(), Schedule(order="chunk", rows=128))


def test_triton_interpreter(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sparsec.testing.triton.scan", str(tmp_path)]
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    errors = json.loads(done.stdout.splitlines()[-1])
    assert all(e < 1e-5 for e in errors.values()), errors


def test_compiled_for_a_gpu(tmp_path: Path) -> None:
    s = replace(RULES["gated delta"], rows=128, cols=128, heads=16, state_heads=16, dtype="bfloat16", final=True)
    schedule = Schedule(order="chunk", rows=64, value_block=32, splits=8, warps=4, stages=1)
    steps = chunk.lower(s.scan(), schedule).steps
    wanted = [(p.program.name, wide_dots(p.program), job(p.program, p.schedule, "sm_90")) for p in steps]
    wrong = {name: x for name, x in misfits(wanted, "sm_90", tmp_path).items() if not isinstance(x, Resources)}
    assert not wrong


def test_two_programs_share_a_processor(tmp_path: Path) -> None:
    """The walks over chunks, whose time is latency, leave half of a processor's shared memory to another program."""
    s = replace(RULES["gated delta"], rows=128, cols=128, heads=16, state_heads=16, dtype="bfloat16")
    forward, back = schedules.default(s.scan(), "triton:sm_90"), schedules.default_grad(s.grad(), "triton:sm_90")
    steps = [*chunk.lower(s.scan(), forward).steps, *chunk_grad.lower(s.grad(), back).steps]
    walks = [step for step in steps if step.program.name in ("scan_ends", "scan", "grad_grad_states")]
    jobs = [job(step.program, step.schedule, "sm_90") for step in walks]
    for step, made in zip(walks, compile_all(jobs, tmp_path), strict=True):
        assert isinstance(made, Compiled)
        assert made.resources.shared <= HALF, f"{step.program.name}: {made.resources}"


def test_states_of_64_columns_are_left_operands(tmp_path: Path) -> None:
    """A program that walks forward multiplies a state from registers: no tile of it lies in shared memory (16 KB)."""
    s = replace(RULES["gated delta"], rows=128, cols=128, heads=16, state_heads=16, dtype="bfloat16")
    steps = chunk.lower(s.scan(), schedules.default(s.scan(), "triton:sm_90")).steps
    (made,) = compile_all([job(x.program, x.schedule, "sm_90") for x in steps if x.program.name == "scan"], tmp_path)
    assert isinstance(made, Compiled)
    assert made.resources.shared <= HALF - 2 * 64 * 128, made.resources


def test_states_outgrow_fp16_and_narrow_keys_make_narrow_transitions() -> None:
    """The chunk form is offered for bf16 alone, and never with more columns than a transition has."""

    def spec(dtype: str, rows: int) -> Scan:
        k, v = Operand("k", dtype), Operand("v", dtype)
        writes = Writes(k, v, 1, rows, 64, rule="delta", beta=Operand("beta", dtype))
        return Scan("scan", writes, (Read(Operand("q", dtype), Operand("o", dtype), 1, 1.0),), dtype)

    assert schedules.in_chunks(spec("float16", 64), "triton:sm_90") is None
    found = schedules.in_chunks(spec("bfloat16", 16), "triton:sm_90")
    assert found is not None and found.value_block == 16
    with pytest.raises(ScheduleError, match="32 columns per program and 16 rows"):
        chunk.lower(spec("bfloat16", 16), Schedule(order="chunk", rows=16, value_block=32, splits=2))
