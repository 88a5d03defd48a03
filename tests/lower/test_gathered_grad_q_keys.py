"""Gradients of queries of gathered attention, key-outer, in the tile interpreter against autograd in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparsec.lower.gathered import grad_q_keys as gathered_grad_q_keys
from sparsec.lower.gathered import grad_schedules as gathered_grad_class
from sparsec.lower.inverse import shares
from sparsec.lower.scalars import sub
from sparsec.plan.specs import Capture, GatheredAttention
from sparsec.scalar.expr import element, var
from sparsec.scalar.functions import tanh
from sparsec.testing.kernels.gathered import Rule, Sizes, attention, draw, grad_q, truth
from sparsec.tile.schedule import Schedule, ScheduleError

H, ROW, KEY, SCORE = var("h"), var("i"), var("j"), var("score", "float")
Run = Callable[..., None]
KEY_OUTER = Schedule(order="key_outer", rows=32, block=16)
CAUSAL = KEY <= ROW


def causal(i: Tensor, j: Tensor, h: Tensor) -> Tensor:
    return j <= i


def error(
    run: Run, s: GatheredAttention, schedule: Schedule = KEY_OUTER, n: Sizes | None = None, rule: Rule | None = None
) -> float:
    """The largest error of an exact run."""
    n = Sizes() if n is None else n
    x = draw(s, n, torch.float64)
    want = truth(s, x, n.offset, rule)
    out = {"dq": torch.full_like(x["q"], math.nan)}
    given = {"lse": want["lse"], "delta": want["delta"]}
    lowered = gathered_grad_class.lower_q(replace(grad_q(s), grad_weights=None), schedule)
    run(lowered, {**x, **given, **out}, n.params, mode="exact")
    return float((out["dq"] - want["dq"].detach()).abs().nan_to_num(nan=math.inf).max())


def test_rowdots_come_first_and_terms_last(run: Run) -> None:
    s, n = attention(3, 2, where=CAUSAL), Sizes()
    x = draw(s, n, torch.float64)
    want = truth(s, x, n.offset, causal)
    found = {name: torch.full_like(want[name], math.nan) for name in ("dq", "delta")}
    spec = replace(grad_q(s), grad_weights=None, dots=True, terms=("other",))
    given = {**x, "lse": want["lse"], "out": want["out"], "other": x["q"] * 3.0, **found}
    run(gathered_grad_class.lower_q(spec, KEY_OUTER), given, n.params, mode="exact")
    want["dq"] = want["dq"] + given["other"]
    for name, made in found.items():
        torch.testing.assert_close(made, want[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("group", [1, 3, 4, 5, 16])
def test_groups(run: Run, group: int) -> None:
    assert error(run, attention(group, 1)) < 1e-9


@pytest.mark.parametrize("scope", ["head", "kv_head", "token"])
def test_scopes(run: Run, scope: str) -> None:
    assert error(run, attention(3, 2, scope=scope), n=Sizes(batch=2)) < 1e-9


@pytest.mark.parametrize("chunk,block", [(16, 16), (32, 16), (24, 32), (48, 16)])
def test_chunks(run: Run, chunk: int, block: int) -> None:
    schedule = replace(KEY_OUTER, block=block, splits=4)
    assert error(run, attention(3, 1, chunk=chunk, slots=3, where=CAUSAL), schedule, Sizes(7, 120, 113), causal) < 1e-9


@pytest.mark.parametrize("tq,tk,offset", [(1, 1, 0), (15, 15, 0), (3, 61, 58), (21, 19, 0)])
def test_lengths(run: Run, tq: int, tk: int, offset: int) -> None:
    s = attention(3, 1, (48, 80), slots=5, where=CAUSAL)
    assert error(run, s, n=Sizes(tq, tk, offset), rule=causal) < 1e-9


def test_score_functions(run: Run) -> None:
    bias = SCORE + tanh(SCORE) - element("slopes", H) * (ROW - KEY)
    assert error(run, attention(3, 1, bias=bias, captures=(Capture("slopes", "float32", 1),))) < 1e-9
    assert error(run, attention(2, 1, softcap=0.5, sink="sinks")) < 1e-9


@pytest.mark.parametrize("dtype,bound", [("float32", 1e-5), ("bfloat16", 0.008), ("float16", 0.001)])
def test_storage_rounding(run: Run, dtype: str, bound: float) -> None:
    s, n = attention(4, 1, (64, 64), dtype=dtype, where=CAUSAL), Sizes(17, 128, 111)
    kind = getattr(torch, dtype)
    x = {name: t.to(kind) if name in ("q", "k", "v", "do") else t for name, t in draw(s, n, torch.float32).items()}
    want, out = truth(s, x, n.offset, causal), {"dq": torch.full_like(x["q"], math.nan, dtype=kind)}
    given = {name: want[name].float() for name in ("lse", "delta")}
    lowered = gathered_grad_class.lower_q(replace(grad_q(s), grad_weights=None), replace(KEY_OUTER, rows=64))
    run(lowered, {**x, **given, **out}, n.params)
    found = (out["dq"].double() - want["dq"]).pow(2).mean().sqrt() / want["dq"].pow(2).mean().sqrt()
    assert float(found) <= bound


def test_keys_past_the_end_give_nothing_to_low_rows(run: Run) -> None:
    """Logits near -100: a key past TK, whose score is 0, would have an infinite weight."""
    s, n = attention(4, 1), Sizes(own=1.0)
    x = draw(s, n, torch.float32)
    x["q"][..., 0], x["k"][..., 0] = 8.0, -100 * math.sqrt(32) / 8
    want, out = truth(s, x, n.offset, None), {"dq": torch.full_like(x["q"], math.nan)}
    given = {name: want[name].float() for name in ("lse", "delta")}
    run(gathered_grad_class.lower_q(replace(grad_q(s), grad_weights=None), KEY_OUTER), {**x, **given, **out}, n.params)
    assert float((out["dq"] - want["dq"]).abs().nan_to_num(nan=math.inf).max()) < 0.01


def test_mistakes_are_seen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    s, share = attention(3, 1, slots=6), shares.read
    for name, mistake in (("_clear", lambda *args: None), ("_add", lambda *args: None)):
        monkeypatch.setattr(gathered_grad_q_keys, name, mistake)
        assert not error(run, s) < 1e-3, name
        monkeypatch.undo()
    monkeypatch.setattr(shares, "read", lambda *args: replace(found := share(*args), count=sub(found.count, 1)))
    assert error(run, s) > 1e-3  # the last entry left out


def test_refusals_name_the_numbers() -> None:
    with pytest.raises(ScheduleError, match="17 heads"):
        gathered_grad_class.lower_q(replace(grad_q(attention(17, 1)), grad_weights=None), replace(KEY_OUTER, rows=16))
    with pytest.raises(ScheduleError, match="under one softmax"):
        gathered_grad_class.lower_q(grad_q(attention(per="chunk")), KEY_OUTER)
