"""Attention over chosen chunks, both loop orders, in the tile interpreter against plain torch in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparsec.lower.gathered import chunks
from sparsec.lower.gathered import schedules as gathered_class
from sparsec.plan.specs import Capture, GatheredAttention
from sparsec.scalar.expr import Expr, element, var
from sparsec.testing.kernels.gathered import attention as spec
from sparsec.tile.schedule import Schedule, ScheduleError

H, ROW, KEY, SCORE = var("h"), var("i"), var("j"), var("score", "float")
Run = Callable[..., None]
UNION = Schedule(order="tile_union", rows=32, block=16)
OUTER = Schedule(order="query_outer", rows=16, block=16)


def draw(
    s: GatheredAttention, tq: int, tk: int, offset: int, seed: int, dtype: torch.dtype, batch: int = 1
) -> dict[str, Tensor]:
    """Random inputs: lists of distinct started chunks in random order, -1 anywhere."""
    torch.manual_seed(seed)
    lists, chunk_count = chunks.lists(s), -(-tk // s.chunk)
    ids = torch.full((batch, tq, lists, s.slots), -1, dtype=torch.int32)
    for b, t, h in torch.cartesian_prod(torch.arange(batch), torch.arange(tq), torch.arange(lists)).tolist():
        open_ = torch.randperm(min(chunk_count, (t + offset) // s.chunk + 1))[: s.slots]
        places = torch.randperm(s.slots)[: len(open_)]
        ids[b, t, h, places] = open_.int()
        ids[b, t, h, int(torch.randint(s.slots, ()))] = -1
    return {
        "q": torch.randn(batch, tq, s.heads, s.head_dim, dtype=dtype),
        "k": torch.randn(batch, tk, s.kv_heads, s.head_dim, dtype=dtype),
        "v": torch.randn(batch, tk, s.kv_heads, s.value_dim, dtype=dtype),
        "ids": ids,
        "w": torch.rand(ids.shape, dtype=dtype).masked_fill(ids < 0, math.nan),
        "counts": torch.randint(0, s.slots + 1, ids.shape[:3], dtype=torch.int32),
        "sinks": torch.randn(s.heads, dtype=dtype),
        "slopes": torch.rand(s.heads, dtype=dtype),
        "out": torch.full((batch, tq, s.heads, s.value_dim), math.nan, dtype=dtype),
        "lse": torch.full((batch, tq, s.heads), math.nan, dtype=dtype),
    }


def brute(
    s: GatheredAttention, x: dict[str, Tensor], offset: int, where: Callable[..., bool] | None
) -> tuple[Tensor, Tensor]:
    """Row by row in fp64."""
    out, lse = (
        torch.zeros_like(x["out"], dtype=torch.float64),
        torch.full_like(x["lse"], -math.inf, dtype=torch.float64),
    )
    ids = x["ids"].clone()
    if s.counts is not None:
        ids[torch.arange(s.slots) >= x["counts"][..., None]] = -1
    tk, group, per_list = x["k"].shape[1], s.heads // s.kv_heads, s.heads // ids.shape[2]
    for b, t, h in torch.cartesian_prod(*map(torch.arange, out.shape[:3])).tolist():
        mine = ids[b, t, h // per_list]
        score = s.scale * (x["k"][b, :, h // group].double() @ x["q"][b, t, h].double())
        score = s.softcap * torch.tanh(score / s.softcap) if s.softcap else score
        if s.bias is not None:
            score = score - x["slopes"][h] * (t + offset - torch.arange(tk))
        shown = torch.tensor([where is None or where(t + offset, j, h) for j in range(tk)])
        sink = {None: None, "zero": torch.zeros(1), "sinks": x["sinks"][h : h + 1]}[s.sink]
        parts = [(n, [c for c in mine.tolist() if c >= 0]) for n in [1.0]] if s.per == "joint" else []
        if s.per == "chunk":
            parts = [(float(x["w"][b, t, h // per_list, slot]), [c]) for slot, c in enumerate(mine.tolist()) if c >= 0]
        for weight, members in parts:
            keys = torch.tensor(
                [j for c in members for j in range(c * s.chunk, min((c + 1) * s.chunk, tk)) if shown[j]]
            )
            logits = torch.cat([score[keys.long()], sink.double()]) if sink is not None else score[keys.long()]
            if len(logits):
                p = torch.softmax(logits, -1)[: len(keys)]
                out[b, t, h] += weight * (p @ x["v"][b, keys.long(), h // group].double())
                lse[b, t, h] = torch.logsumexp(logits, -1)
    return out, lse


def check(
    run: Run,
    s: GatheredAttention,
    schedule: Schedule,
    tq: int = 11,
    tk: int = 75,
    offset: int = 64,
    where: Callable[..., bool] | None = None,
    batch: int = 1,
) -> None:
    """Run the programs of a schedule exactly and compare."""
    x = draw(s, tq, tk, offset, 0, torch.float64, batch)
    want, want_lse = brute(s, x, offset, where)
    params = {"B": batch, "TQ": tq, "TK": tk, "q_offset": offset}
    run(gathered_class.lower(s, schedule), x, params, mode="exact")
    torch.testing.assert_close(x["out"], want, rtol=1e-9, atol=1e-9)
    if s.lse is not None:
        torch.testing.assert_close(x["lse"], want_lse, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("group", [1, 3, 4, 5, 16])
@pytest.mark.parametrize("per", ["joint", "chunk"])
@pytest.mark.parametrize("schedule", [OUTER, UNION], ids=["outer", "union"])
def test_groups(run: Run, schedule: Schedule, per: str, group: int) -> None:
    check(run, spec(group, 1, per=per), schedule)


@pytest.mark.parametrize("dims", [(48, 80), (64, 32), (96, 128)])
@pytest.mark.parametrize("schedule", [OUTER, UNION], ids=["outer", "union"])
def test_head_dims(run: Run, schedule: Schedule, dims: tuple[int, int]) -> None:
    check(run, spec(2, 1, dims), schedule, tq=5, tk=40, offset=33)
    narrow = replace(schedule, value_block=16, split_dims=False, rows=4)
    check(run, spec(2, 1, dims), narrow, tq=5, tk=40, offset=33)


@pytest.mark.parametrize("tq,tk,offset", [(1, 1, 0), (15, 15, 0), (16, 16, 0), (17, 17, 0), (3, 61, 58), (29, 19, 0)])
@pytest.mark.parametrize("schedule", [OUTER, UNION], ids=["outer", "union"])
def test_lengths(run: Run, schedule: Schedule, tq: int, tk: int, offset: int) -> None:
    check(run, spec(3, 2, slots=6), schedule, tq, tk, offset)
    check(run, spec(3, 2, slots=6, per="chunk"), schedule, tq, tk, offset)


@pytest.mark.parametrize("scope", ["head", "kv_head", "token"])
@pytest.mark.parametrize("schedule", [OUTER, UNION], ids=["outer", "union"])
@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_scopes(run: Run, schedule: Schedule, scope: str, per: str) -> None:
    check(run, spec(3, 2, scope=scope, per=per), schedule, batch=2)


@pytest.mark.parametrize("rows", [64, 128])
def test_more_tokens_than_one_word_holds(run: Run, rows: int) -> None:
    s = spec(2, 1, scope="head", slots=3)
    check(run, s, replace(UNION, rows=rows), tq=40, tk=60, offset=20)
    check(run, replace(s, per="chunk", weights="w", lse=None), replace(UNION, rows=rows), tq=40, tk=60, offset=20)


@pytest.mark.parametrize("per", ["joint", "chunk"])
@pytest.mark.parametrize("schedule", [OUTER, UNION], ids=["outer", "union"])
@pytest.mark.parametrize("chunk,sink", [(32, None), (24, "zero"), (48, "sinks"), (16, "sinks")])
def test_chunks_read_in_parts(run: Run, schedule: Schedule, per: str, sink: str | None, chunk: int) -> None:
    check(run, spec(3, 1, per=per, chunk=chunk, slots=3, sink=sink), schedule, tq=11, tk=120, offset=109)


@pytest.mark.parametrize("chunk", [1, 2, 8])
def test_small_chunks_share_a_tile(run: Run, chunk: int) -> None:
    check(run, spec(3, 2, chunk=chunk, slots=21), OUTER, tq=11, tk=53, offset=42)
    check(run, spec(3, 2, chunk=chunk, slots=21, counts="counts", scope="token"), OUTER, tq=11, tk=53, offset=42)


@pytest.mark.parametrize("schedule", [OUTER, UNION], ids=["outer", "union"])
@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_counts_cut_the_lists(run: Run, schedule: Schedule, per: str) -> None:
    check(run, spec(3, 2, per=per, counts="counts"), schedule)


CAUSAL: tuple[Expr, Callable[..., bool]] = (KEY <= ROW, lambda i, j, h: j <= i)
WINDOW: tuple[Expr, Callable[..., bool]] = ((KEY <= ROW) & (ROW - KEY < 24), lambda i, j, h: j <= i and i - j < 24)
DILATED: tuple[Expr, Callable[..., bool]] = ((ROW - KEY) % 2 <= 0, lambda i, j, h: (i - j) % 2 == 0)
BY_HEAD: tuple[Expr, Callable[..., bool]] = (
    (KEY <= ROW) & (ROW - KEY < (H + 1) * 9),
    lambda i, j, h: j <= i and i - j < (h + 1) * 9,
)


@pytest.mark.parametrize(
    "rule", [None, CAUSAL, WINDOW, DILATED, BY_HEAD], ids=["none", "causal", "window", "dilated", "by_head"]
)
@pytest.mark.parametrize("schedule", [OUTER, UNION, replace(UNION, phases="split")], ids=["outer", "union", "split"])
@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_predicates(run: Run, schedule: Schedule, per: str, rule: tuple[Expr, Callable[..., bool]] | None) -> None:
    if rule is None:
        check(run, spec(3, 2, per=per), schedule)
        return
    check(run, spec(3, 2, per=per, where=rule[0]), schedule, where=rule[1])
    check(run, spec(3, 2, per=per, where=rule[0], chunk=32), schedule, 19, 50, 31, where=rule[1])


@pytest.mark.parametrize("schedule", [OUTER, UNION], ids=["outer", "union"])
def test_score_functions(run: Run, schedule: Schedule) -> None:
    bias = SCORE - element("slopes", H) * (ROW - KEY)
    s = spec(3, 2, bias=bias, captures=(Capture("slopes", "float32", 1),))
    check(run, s, schedule)
    check(run, replace(s, bias=None, captures=(), softcap=2.0), schedule)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("schedule", [OUTER, UNION], ids=["outer", "union"])
@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_storage_rounding(run: Run, schedule: Schedule, per: str, dtype: str) -> None:
    s = spec(4, 2, (64, 64), per=per, dtype=dtype)
    x = draw(s, 33, 128, 95, 3, torch.float32)
    x = {n: t.to(getattr(torch, dtype)) if n in ("q", "k", "v", "out") else t for n, t in x.items()}
    want, _ = brute(s, x, 95, None)
    run(gathered_class.lower(s, schedule), x, {"B": 1, "TQ": 33, "TK": 128, "q_offset": 95})
    error = (x["out"].double() - want).pow(2).mean().sqrt() / want.pow(2).mean().sqrt()
    assert float(error) <= 0.003 / (8 if dtype == "float16" else 1)


def test_an_empty_row_is_zero(run: Run) -> None:
    for schedule in (OUTER, UNION):
        s = spec(3, 1)
        x = draw(s, 9, 40, 31, 0, torch.float64)
        x["ids"].fill_(-1)
        run(gathered_class.lower(s, schedule), x, {"B": 1, "TQ": 9, "TK": 40}, mode="exact")
        assert bool((x["out"] == 0).all()) and bool((x["lse"] == -math.inf).all())


@pytest.mark.parametrize("target", ["triton:sm_90", "tvm:llvm"])
@pytest.mark.parametrize("group,chunk", [(1, 64), (3, 64), (16, 32), (4, 2), (2, 24)])
def test_default_schedules(run: Run, target: str, group: int, chunk: int) -> None:
    s = spec(group, 1, chunk=chunk, slots=3)
    check(run, s, gathered_class.default(s, target), tq=9, tk=150, offset=141)


def test_refusals_name_the_numbers() -> None:
    with pytest.raises(ScheduleError, match="16 rows do not hold the 17 heads"):
        gathered_class.lower(spec(17, 1), replace(UNION, rows=16))
    with pytest.raises(ScheduleError, match="value_block 24"):
        gathered_class.lower(spec(), replace(OUTER, value_block=24))
    with pytest.raises(ScheduleError, match="8 rows x 16 keys"):
        gathered_class.lower(spec(), replace(OUTER, rows=8))
    with pytest.raises(ScheduleError, match="256 tokens per tile"):
        gathered_class.lower(spec(1, 1), replace(UNION, rows=256))
    with pytest.raises(ScheduleError, match="no loop order 'inside_out'"):
        gathered_class.lower(spec(), replace(OUTER, order="inside_out"))
