"""Default schedules of the backward of tiled attention, compiled for GPUs without one: no spills, tensor cores used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sparsec.backends.triton.compile import Compiled, CompileError, compile_all
from sparsec.lower.registry import default, lower_kernel, space
from sparsec.plan.grad_specs import TiledGradCapture, TiledGradKV, TiledGradQ
from sparsec.plan.specs import BlockList, Capture, Piece, TiledAttention
from sparsec.scalar.expr import element, var
from sparsec.testing.triton.ahead import jobs
from sparsec.tile.schedule import Schedule

ROW, KEY = var("i"), var("j")
SINKS = (KEY <= ROW) & ((ROW - KEY < 1024) | (KEY < 64))
SLOTS = Piece("mk", "mv", "M", batched=False, size=64)
SLOPE = var("score", "float") - element("c", var("h")) * (ROW - KEY)
SLOPES = Piece("k", "v", "TK", SINKS, SLOPE, (Capture("c", "float32", 1),))
Spec = TiledGradQ | TiledGradKV | TiledGradCapture


def attention(dim: int, dtype: str = "bfloat16", first: Piece | None = None) -> TiledAttention:
    """A window with sinks, beside slots, at the sizes of a real layer."""
    pieces = (first or Piece("k", "v", "TK", SINKS), SLOTS)
    return TiledAttention("attend", "q", pieces, "out", "lse", 32, 8, dim, dim, dim**-0.5, dtype)


def queries(forward: TiledAttention) -> TiledGradQ:
    """The gradient of its queries."""
    return TiledGradQ("gradq", forward, "grad", "delta", "dq", forward.dtype, forward.dtype)


def keys(forward: TiledAttention, piece: int = 0) -> TiledGradKV:
    """The gradients of one of its pieces."""
    names = ("grad", "delta", "dk", "dv", forward.dtype, forward.dtype)
    return TiledGradKV("gradkv", forward, piece, *names)


def keys_of_list(forward: TiledAttention) -> TiledGradKV:
    """The gradients of tokens whose mask is read from a block list."""
    where = (KEY <= ROW) & ((ROW * 7 + KEY * 3) % 19 < 2)
    listed = BlockList("blocks", where, (), "ids", "counts", "TK", 64, 64, False, 1)
    tokens = Piece("k", "v", "TK", where, listed=listed)
    return replace(keys(replace(forward, pieces=(tokens,))), listed=replace(listed, transposed=True))


def slopes(forward: TiledAttention) -> TiledGradCapture:
    """The gradient of its slopes."""
    return TiledGradCapture("gradc", forward, "c", (32,), "grad", "delta", "dc", forward.dtype)


CASES: dict[str, tuple[Spec, str]] = {
    "queries of 64": (queries(attention(64)), "sm_90"),
    "queries of 128": (queries(attention(128)), "sm_90"),
    "keys of 64": (keys(attention(64)), "sm_90"),
    "keys of 128": (keys(attention(128)), "sm_90"),
    "slots": (keys(attention(128), 1), "sm_90"),
    "keys under slopes": (keys(attention(64, first=SLOPES)), "sm_90"),
    "slopes": (slopes(attention(64, first=SLOPES)), "sm_90"),
    "keys of a block list": (keys_of_list(attention(128)), "sm_90"),
    "fp32": (keys(attention(64, "float32")), "sm_90"),
    "fp16": (keys(attention(64, "float16")), "sm_90"),
    "keys on Ampere": (keys(attention(64)), "sm_80"),
    "keys on AMD": (keys(attention(64)), "gfx942"),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Compiled | CompileError]]:
    """Every program of every case, compiled in one process."""
    wanted = {name: [job for _, job in jobs(*case)] for name, case in CASES.items()}
    every = [job for found in wanted.values() for job in found]
    made = iter(compile_all(every, Path(tmp_path_factory.mktemp("compiled"))))
    return {name: [next(made) for _ in found] for name, found in wanted.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_defaults_fit_without_spills(name: str, compiled: dict[str, list[Compiled | CompileError]]) -> None:
    for program in compiled[name]:
        assert isinstance(program, Compiled), program
        assert program.resources.spills == 0
        assert program.resources.shared <= 227 * 1024
    if CASES[name][1] == "sm_90" and name != "fp32":
        assert any(isinstance(p, Compiled) and p.resources.wgmma for p in compiled[name])


TARGETS = ["triton:sm_80", "triton:sm_90", "triton:sm_100", "triton:gfx942", "tvm:llvm"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dim", [64, 80, 128, 192, 256])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_default_can_be_lowered(target: str, dim: int, dtype: str) -> None:
    forward = attention(dim, dtype)
    for spec in (queries(forward), keys(forward), keys(forward, 1)):
        made = default(spec, target)
        assert lower_kernel(spec, made).steps
        assert set(space(spec, target)) <= set(Schedule.__dataclass_fields__)


def test_wide_keys_are_shared_out_and_others_are_not() -> None:
    narrow = replace(attention(128), pieces=(Piece("k", "v", "TK", KEY <= ROW),))
    assert default(keys(narrow), "triton:sm_90").splits == 1
    assert default(keys(attention(128)), "triton:sm_90").splits == 32
    assert default(keys(attention(128), 1), "triton:sm_90").splits == 32
    few = replace(narrow, pieces=(Piece("k", "v", "N0", 64 * KEY + 63 <= ROW),))
    assert default(keys(few), "triton:sm_90").splits == 8
    long = replace(narrow, pieces=(Piece("k", "v", "TK", size=1 << 16),))
    assert default(keys(long), "triton:sm_90").splits == 1
