"""Gradients of tokens under mean summaries, in the tile interpreter against autograd in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparsec.lower import summarise_grad
from sparsec.lower.registry import lower_kernel
from sparsec.oracle.error import ratio
from sparsec.oracle.summary import summarise
from sparsec.plan.grad_specs import SummariseGrad
from sparsec.plan.specs import Summarise
from sparsec.scalar.fn import Fn
from sparsec.testing.mistakes.mutants import Args, Change, mutated
from sparsec.tile import build as tile
from sparsec.tile.language import Node, TileOp
from sparsec.tile.schedule import Schedule, ScheduleError
from sparsec.tile.verify import verify

Run = Callable[..., None]
WINDOWS = [(16, 16), (32, 16), (5, 3), (64, 64), (3, 1), (4, 9)]


def spec(size: int, stride: int, dims: tuple[int, int] = (2, 48), dtype: str = "float32") -> SummariseGrad:
    """The gradient of means of windows, from fp32."""
    forward = Summarise("s", "x", "out", *dims, size, stride, "N", "mean", dtype, "float32")
    return SummariseGrad("pull", forward, "g", "dx", "float32", dtype)


def truth(s: SummariseGrad, g: Tensor, length: int) -> Tensor:
    """dx by autograd through the oracle's summaries."""
    x = torch.randn(g.shape[0], length, *g.shape[2:], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(summarise(x, s.forward.size, s.forward.stride, "mean"), x, g.double())
    return found


def pulled(
    run: Run, s: SummariseGrad, length: int, schedule: Schedule, exact: bool = True, change: Change | None = None
) -> tuple[Tensor, Tensor]:
    """What the kernel writes, and the truth."""
    torch.manual_seed(length)
    count = -(-length // s.forward.stride)
    kind = torch.float64 if exact else torch.float32
    g = torch.randn(2, count, s.forward.heads, s.forward.dim, dtype=kind)
    shape = (2, length, *g.shape[2:])
    dx = torch.full(shape, math.nan, dtype=kind if exact else getattr(torch, s.out_dtype))
    lowered = lower_kernel(s, schedule)
    verify(lowered.steps[0].program)
    lowered = lowered if change is None else mutated(lowered, change)
    params = {"B": 2, "TQ": 1, "TK": length, "q_offset": 0, "N": count}
    run(lowered, {"g": g, "dx": dx}, params, mode="exact" if exact else "storage")
    return dx, truth(s, g, length)


@pytest.mark.parametrize("size,stride", WINDOWS)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 97])
def test_windows(run: Run, size: int, stride: int, length: int) -> None:
    for target in ("triton:sm_90", "tvm:llvm"):
        s = spec(size, stride)
        found, want = pulled(run, s, length, summarise_grad.default(s, target))
        torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [(1, 16), (3, 80)])
@pytest.mark.parametrize("block", [1, 4, 64])
def test_tiles_change_nothing(run: Run, block: int, dims: tuple[int, int]) -> None:
    found, want = pulled(run, spec(24, 8, dims), 61, Schedule(block=block))
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rounded_once(run: Run, dtype: str) -> None:
    found, want = pulled(run, spec(32, 16, dtype=dtype), 75, Schedule(block=16), exact=False)
    assert ratio(found.double() - want, want) <= {"float32": 1e-6, "bfloat16": 0.003, "float16": 0.003 / 8}[dtype]


def undivided(node: Node, args: Args) -> Node | None:
    """Means whose gradient is that of sums."""
    return args[0] if node.op is TileOp.MAP and node.attrs[0] is Fn.DIV and node.dtype == "float32" else None


def one_window(node: Node, args: Args) -> Args | None:
    """Only the last window of each token."""
    return (args[0], tile.const(1), *args[2:]) if node.op is TileOp.LOOP else None


def full_last_windows(node: Node, args: Args) -> Node | None:
    """The ragged last window divided by its full size."""
    return args[1] if node.op is TileOp.MAP and node.attrs[0] is Fn.MINIMUM else None


def one_window_too_long(node: Node, args: Args) -> Node | None:
    """Windows that hold one token more."""
    token = node.op is TileOp.MAP and node.attrs[0] is Fn.LT and bool(node.args[1].axes)
    return tile.apply(Fn.LE, *args) if token else None


@pytest.mark.parametrize("change", [undivided, one_window, full_last_windows, one_window_too_long])
def test_mistakes_show(run: Run, change: Change) -> None:
    found, want = pulled(run, spec(24, 16), 58, Schedule(block=16), change=change)
    assert ratio(found - want, want) > 0.02


def test_refusals_name_the_numbers() -> None:
    with pytest.raises(ScheduleError, match="block 24"):
        summarise_grad.lower(spec(16, 16), Schedule(block=24))
