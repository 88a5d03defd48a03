"""Summaries of windows and merges of branches: the programs in the tile interpreter against plain torch."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sparsec.autotune.space import Space
from sparsec.lower import combine, summarise
from sparsec.plan.specs import Combine, Summarise
from sparsec.tile.interpreter import interpret
from sparsec.tile.schedule import Schedule, ScheduleError


def expected_summary(x: torch.Tensor, size: int, stride: int, fn: str) -> torch.Tensor:
    """Mean or maximum of each window of what exists."""
    windows = [x[:, at : at + size] for at in range(0, x.shape[1], stride)]
    return torch.stack([w.mean(1) if fn == "mean" else w.amax(1) for w in windows], 1)


@pytest.mark.parametrize("fn", ["mean", "max"])
@pytest.mark.parametrize("size,stride", [(16, 16), (32, 16), (5, 3), (64, 64)])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 97])
def test_windows(fn: str, size: int, stride: int, length: int) -> None:
    heads, dim = 2, 48
    spec = Summarise("s", "x", "out", heads, dim, size, stride, "N", fn, "float32", "float32")
    x = torch.randn(2, length, heads, dim, dtype=torch.float64)
    out = torch.full((2, math.ceil(length / stride), heads, dim), math.nan, dtype=torch.float64)
    params = {"B": 2, "TQ": 1, "TK": length, "q_offset": 0, "N": out.shape[1]}
    for target in ("triton:sm_90", "tvm:llvm"):
        out.fill_(math.nan)
        interpret(summarise.lower(spec, summarise.default(spec, target)), {"x": x, "out": out}, params, mode="exact")
        torch.testing.assert_close(out, expected_summary(x, size, stride, fn), rtol=1e-12, atol=1e-12)


def test_long_windows_of_wide_heads_are_read_in_one_piece_on_hopper() -> None:
    spec = Summarise("s", "x", "out", 1, 128, 512, 512, "N", "mean", "bfloat16", "float32")
    x, out = torch.randn(1, 700, 1, 128).bfloat16(), torch.full((1, 2, 1, 128), math.nan)
    schedule = summarise.default(spec, "triton:sm_90")
    assert (schedule.block, schedule.warps) == (512, 16)
    assert summarise.default(replace(spec, dim=64), "triton:sm_90") == schedule
    for other in (replace(spec, dtype="float32"), replace(spec, dim=256), replace(spec, size=256)):
        assert summarise.default(other, "triton:sm_90").block < 512
    Space(schedule, summarise.space(spec, "triton:sm_90")).params(summarise.default(spec, "triton:sm_80"))
    params = {"B": 1, "TQ": 1, "TK": 700, "q_offset": 0, "N": 2}
    interpret(summarise.lower(spec, schedule), {"x": x, "out": out}, params)
    torch.testing.assert_close(out, expected_summary(x.float(), 512, 512, "mean"), rtol=1e-5, atol=1e-6)


def test_tokens_per_tile_change_nothing() -> None:
    spec = Summarise("s", "x", "out", 1, 16, 24, 8, "N", "mean", "bfloat16", "bfloat16")
    x = torch.randn(1, 61, 1, 16).bfloat16()
    params = {"B": 1, "TQ": 1, "TK": 61, "q_offset": 0, "N": 8}
    truth = expected_summary(x.double(), 24, 8, "mean")
    for block in (1, 4, 32):
        out = torch.full((1, 8, 1, 16), math.nan).bfloat16()
        interpret(summarise.lower(spec, Schedule(block=block)), {"x": x, "out": out}, params)
        torch.testing.assert_close(out.double(), truth, rtol=2**-8, atol=1e-6)
    with pytest.raises(ScheduleError, match="block 24"):
        summarise.lower(spec, Schedule(block=24))


BASE = Combine("c", "sum", ("a", "b"), (), (), "out", None, 3, 48, "float32")


def run_combine(spec: Combine, tensors: dict[str, torch.Tensor], target: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The merged branches and, where asked for, the log-sum-exp."""
    shape = tensors["a"].shape
    out, lse = tensors["a"].new_full(shape, math.nan), tensors["a"].new_full(shape[:3], math.nan)
    params = {"B": shape[0], "TQ": shape[1], "TK": 1, "q_offset": 0}
    program = combine.lower(spec, combine.default(spec, target))
    interpret(program, {**tensors, "out": out, "lse": lse}, params, mode="exact")
    return out, lse


@pytest.mark.parametrize("target", ["triton:sm_90", "tvm:llvm"])
def test_linear_merges(target: str) -> None:
    a, b = torch.randn(2, 2, 37, 3, 48, dtype=torch.float64)
    g, h = torch.randn(2, 2, 37, 3, dtype=torch.float64)
    tensors = {"a": a, "b": b, "g": g, "h": h}
    assert torch.equal(run_combine(BASE, tensors, target)[0], a + b)
    gated = run_combine(replace(BASE, fn="gated", gates=("g", "h")), tensors, target)[0]
    torch.testing.assert_close(gated, g[..., None] * a + h[..., None] * b)
    convex = run_combine(replace(BASE, fn="convex", gates=("g",)), tensors, target)[0]
    torch.testing.assert_close(convex, g[..., None] * a + (1 - g)[..., None] * b)


@pytest.mark.parametrize("target", ["triton:sm_90", "tvm:llvm"])
def test_joint_softmax_of_disjoint_sets(target: str) -> None:
    torch.manual_seed(0)
    scores, v = torch.randn(2, 37, 3, 12, dtype=torch.float64) * 30, torch.randn(12, 48, dtype=torch.float64)
    scores[:, 5, 0, :7] = -math.inf
    scores[:, 6, 0] = -math.inf
    parts = [(scores[..., :7], v[:7]), (scores[..., 7:], v[7:])]
    (a, la), (b, lb) = ((torch.softmax(s, -1).nan_to_num() @ x, torch.logsumexp(s, -1)) for s, x in parts)
    spec = replace(BASE, fn="lse", lses=("la", "lb"), lse="lse")
    out, lse = run_combine(spec, {"a": a, "b": b, "la": la, "lb": lb}, target)
    torch.testing.assert_close(out, torch.softmax(scores, -1).nan_to_num() @ v)
    torch.testing.assert_close(lse, torch.logsumexp(scores, -1))
    assert bool((out[:, 6, 0] == 0).all()) and bool((lse[:, 6, 0] == -math.inf).all())
