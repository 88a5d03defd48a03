"""Partial outputs of key-outer attention in half precision: as fine as fp16, and rows of any size."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparsec.lower.gathered import schedules as gathered_class
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.expr import var
from sparsec.testing.gathered_case import Sizes, attention, draw, forward
from sparsec.tile.schedule import Schedule

Run = Callable[..., None]
SIZES = Sizes(96, 256, 160, own=1.0)


def spec(per: str = "joint", dtype: str = "bfloat16") -> GatheredAttention:
    """Causal softmax over 4 chunks of 32 tokens, chosen by each of 2 query heads."""
    causal = var("j") <= var("i")
    return attention(2, 1, (64, 64), per=per, dtype=dtype, scope="head", chunk=32, where=causal)


def outputs(run: Run, s: GatheredAttention, change: Callable[[Tensor], object]) -> tuple[Tensor, Tensor, Tensor]:
    """The output where some values are changed, the truth in fp64, and the lists."""
    x = draw(s, SIZES, torch.float32)
    dtype = getattr(torch, s.dtype)
    x |= {n: x[n].to(dtype) for n in "qkv"}
    change(x["v"])
    x["out"], x["lse"] = torch.full_like(x["q"], math.nan), torch.empty(x["q"].shape[:3])
    leaves = {n: x[n].double() for n in "qkvw"}
    want, _ = forward(s, x, leaves, SIZES.offset, lambda i, j, h: j <= i)
    run(gathered_class.lower(s, Schedule(order="key_outer", rows=64, block=16)), x, SIZES.params)
    return x["out"].double(), want, x["ids"]


@pytest.mark.parametrize("dtype,most", [("bfloat16", 0.0022), ("float16", 0.00032)])
@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_storage_rounding(run: Run, per: str, dtype: str, most: float) -> None:
    """Hardly more than rounding the softmax and the output gives; partial outputs in bf16 gave 0.0025 and 0.0023."""
    out, want, _ = outputs(run, spec(per, dtype), lambda v: None)
    error = float((out - want).pow(2).mean().sqrt() / want.pow(2).mean().sqrt())
    assert error <= most, error


@pytest.mark.parametrize("size", [2.0**-118, 2.0**-60, 2.0**60, 2.0**118])
def test_values_of_any_size(run: Run, size: float) -> None:
    out, want, _ = outputs(run, spec(), lambda v: v.mul_(size))
    torch.testing.assert_close(out / size, want / size, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_stays_in_its_column(run: Run, value: float) -> None:
    """One value of a chunk that rows of later chunks chose: their column shows it, their others are as without it."""
    right, _, _ = outputs(run, spec(), lambda v: None)
    out, _, ids = outputs(run, spec(), lambda v: v[:, 3, 0].__setitem__((0, 5), value))
    chose = (ids == 0).any(-1)
    assert bool(chose.any()) and bool((out[..., 5].isfinite() != chose).all())
    right[..., 5], out[..., 5] = 0.0, 0.0
    torch.testing.assert_close(out, right, rtol=2.0**-7, atol=2e-4)
