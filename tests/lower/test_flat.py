"""Gathered attention without a running maximum, in the tile interpreter against autograd's reference in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsec.lower.gathered import schedules as gathered_class
from sparsec.plan.specs import Capture, GatheredAttention
from sparsec.scalar.expr import Expr, element, var
from sparsec.scalar.functions import tanh
from sparsec.testing.kernels.gathered import Rule, Sizes, attention, draw, forward
from sparsec.tile.schedule import Schedule

Run = Callable[..., None]
Change = Callable[[dict[str, Tensor]], object]
ROW, KEY, SCORE = var("i"), var("j"), var("score", "float")
BIAS = SCORE + tanh(SCORE) - element("slopes", var("h")) * (ROW - KEY)
FLAT = Schedule(order="key_outer", rows=64, block=16, maximum=False)
ORDERS = {
    "key": FLAT,
    "query": replace(FLAT, order="query_outer", rows=16),
    "union": replace(FLAT, order="tile_union", rows=16),
    "union, split": replace(FLAT, order="tile_union", rows=16, block=32, phases="split"),
}
orders = pytest.mark.parametrize("order", ORDERS)
RULES: dict[str, tuple[Expr | None, Rule]] = {
    "all": (None, lambda i, j, h: j < 10**9),
    "causal": (KEY <= ROW, lambda i, j, h: j <= i),
    "window": ((KEY <= ROW) & (ROW - KEY < 70), lambda i, j, h: (j <= i) & (i - j < 70)),
}


def spec(rule: str = "causal", group: int = 2, **changes: object) -> GatheredAttention:
    """A softmax over 4 chunks of 32 tokens, chosen by each of 2 query heads."""
    base = {"dtype": "bfloat16", "scope": "head", "chunk": 32, "where": RULES[rule][0]}
    return attention(group, 1, (64, 64), **{**base, **changes})


def error(
    run: Run, s: GatheredAttention, sizes: Sizes, rule: str, change: Change, order: str, unit: float = 1.0
) -> float:
    """The error of the output over its size, root mean square; values are ``unit`` times as large."""
    x = draw(s, sizes, torch.float32)
    change(x)
    x["v"].mul_(unit)
    x |= {n: x[n].bfloat16() for n in "qkv"}
    x["out"], x["lse"] = torch.full_like(x["q"], math.nan), torch.empty(x["q"].shape[:3])
    want, lse = forward(s, x, {n: x[n].double() for n in "qkvw"}, sizes.offset, RULES[rule][1])
    run(gathered_class.lower(s, ORDERS[order]), x, sizes.params)
    if s.lse is not None:
        torch.testing.assert_close(x["lse"].double(), lse, rtol=1e-3, atol=2e-3)
    out, want = x["out"].double() / unit, want / unit
    torch.testing.assert_close(out, want, rtol=0.02, atol=0.02)
    return float((out - want).pow(2).mean().sqrt() / want.pow(2).mean().sqrt().clamp_min(1e-9))


@pytest.mark.parametrize("sizes", [Sizes(96, 256, 160), Sizes(45, 29, -16), Sizes(30, 150, 120)], ids=str)
@pytest.mark.parametrize("own", [0.0, 1.0])
@pytest.mark.parametrize("rule", RULES)
@orders
def test_masks_and_lengths(run: Run, order: str, rule: str, own: float, sizes: Sizes) -> None:
    """Whole chunks that all rows see, chunks that some see in part, and a last chunk beyond the keys.

    Weights are rounded as with a maximum, but for the largest of a row, which a maximum makes 1.
    """
    assert error(run, spec(rule), replace(sizes, own=own), rule, lambda x: None, order) <= 0.0026
    assert error(run, spec(rule, per="chunk"), replace(sizes, own=own), rule, lambda x: None, order) <= 0.0026


@pytest.mark.parametrize("shift", [0.0, -100.0, 100.0])
@pytest.mark.parametrize("size", [0.0, 4.0, 20.0, 80.0])
@orders
def test_logits_of_any_size(run: Run, order: str, size: float, shift: float) -> None:
    """Far from zero, weights leave fp32's range: such rows are read again with a maximum, and no other row suffers.

    Every second query has its logits shifted.
    """
    s = spec()

    def change(x: dict[str, Tensor]) -> None:
        odd = torch.arange(x["q"].shape[1]) % 2
        x["q"].mul_(size)
        x["q"][..., 0], x["k"][..., 0] = 16.0 * odd[:, None], shift / 16.0 / s.scale

    assert error(run, s, Sizes(96, 256, 160, own=1.0), "causal", change, order) <= 0.005


@pytest.mark.parametrize("unit", [2.0**-100, 2.0**100])
@orders
def test_weights_times_values_of_any_size(run: Run, order: str, unit: float) -> None:
    """Sums of weights may be safe where their products with values are not."""

    s, shift = spec(), 30.0 if unit > 1.0 else -30.0

    def change(x: dict[str, Tensor]) -> None:
        x["q"][..., 0], x["k"][..., 0] = 16.0, shift / 16.0 / s.scale

    assert error(run, s, Sizes(96, 256, 160, own=1.0), "causal", change, order, unit) <= 0.005


@orders
@pytest.mark.parametrize(
    "changes",
    [
        {"counts": "counts", "sink": "sinks", "lse": None},
        {"bias": BIAS, "captures": (Capture("slopes", "float32", 1),)},
        {},
    ],
    ids=["counts and sinks", "bias", "plain"],
)
def test_heads_that_share_a_list(run: Run, order: str, changes: dict[str, Any]) -> None:
    s = spec(group=4, scope="kv_head", **changes)
    assert error(run, s, Sizes(45, 150, 105), "causal", lambda x: None, order) <= 0.0028


@pytest.mark.parametrize(("order", "number"), [("key", 3), ("query", 0), ("union", 1)])
def test_what_is_read_again_stands_under_a_condition(order: str, number: int) -> None:
    from sparsec.backends.triton.emit import emit

    step = gathered_class.lower(spec(), ORDERS[order]).steps[number]
    program = emit(step.program, step.schedule)
    quick, _, again = program.partition("    if mask_")
    assert quick.count("tl.dot(") == again.count("tl.dot(") == 2
    assert "tl.maximum(high" not in quick and "for i in" in quick
