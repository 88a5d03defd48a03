"""The streaming selector in the tile interpreter against brute force over all blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.select import schedules
from sparsec.lower.select import streaming as selector
from sparsec.plan.specs import Pool, Selector
from sparsec.scalar.expr import Expr, constant, var
from sparsec.tile.schedule import Schedule, ScheduleError

POS, C = var("i"), var("c")
SMALL = Schedule(rows=16, block=16)
APART = replace(SMALL, order="apart")


def spec(**changes: object) -> Selector:
    """A selector of 4 of 16-token chunks, per head, without softmax."""
    base = Selector("select", "q", "keys", "ids", None, 2, 2, 16, "N", "NB", 0.25, 4, 4, "float32")
    base = replace(base, eligible=(C + 1) * 16 <= POS)
    return replace(base, weights_out="w" if changes.get("weights") else None, **changes)  # type: ignore[arg-type]


def brute_scores(s: Selector, q: Tensor, keys: Tensor, visible: Tensor, blocks: int) -> Tensor:
    """Block scores ``[B,TQ,HS,NB]`` in fp64."""
    group = s.heads // s.kv_heads
    score = s.scale * torch.einsum("bthd,bnhd->bthn", q.double(), keys.double().repeat_interleave(group, 2))
    if s.softmax:
        score = torch.softmax(score.masked_fill(~visible, -math.inf), -1).nan_to_num()
    if s.group is not None:
        grouped = score.unflatten(2, (s.kv_heads, group))
        score = {"sum": grouped.sum(3), "mean": grouped.mean(3), "max": grouped.amax(3)}[s.group]
    return score if s.pool is None else brute_pool(s.pool, score, blocks)


def brute_pool(pool: Pool, score: Tensor, blocks: int) -> Tensor:
    """The definition of a pool, summary by summary."""
    count, pooled = score.shape[-1], []
    for c in range(blocks):
        if pool.kind == "max":
            first = c * pool.stride_blocks - pool.padding
            found = [score[..., n] for n in range(first, first + pool.kernel) if 0 <= n < count]
            pooled.append(torch.stack(found).amax(0) if found else torch.full_like(score[..., 0], -math.inf))
            continue
        if pool.kind == "sum":
            first = c * pool.stride_blocks - pool.padding
            found = [score[..., n] for n in range(first, first + pool.kernel) if 0 <= n < count]
            pooled.append(sum(found, torch.zeros_like(score[..., 0])))
            continue
        ratio, sign = pool.block // pool.stride, -1 if pool.kind == "paper_literal" else 1
        numbers = [ratio * c + sign * m - n for m in range(ratio) for n in range(pool.size // pool.stride)]
        pooled.append(sum((score[..., n] for n in numbers if 0 <= n < count), torch.zeros_like(score[..., 0])))
    return torch.stack(pooled, -1)


def brute_choice(s: Selector, score: Tensor, eligible: Tensor, forced: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and scores of the chosen, by sorting Python lists."""
    ids, values = torch.full((*score.shape[:3], s.slots), -1), torch.zeros(*score.shape[:3], s.slots).double()
    for b, t, h in torch.cartesian_prod(*map(torch.arange, score.shape[:3])).tolist():
        row = score[b, t, h].tolist()
        found = [c for c in range(len(row)) if eligible[t, c]]
        found.sort(key=lambda c: (not forced[t, c], -row[c], c))
        limit = s.k if s.count_forced else s.k + sum(bool(forced[t, c]) for c in found)
        found = found[: min(limit, s.slots)]
        if s.order != "score":
            found.sort(reverse=s.order == "newest")
        ids[b, t, h, : len(found)] = torch.tensor(found)
        values[b, t, h, : len(found)] = torch.tensor([row[c] for c in found]).double()
    return ids, values


def table(predicate: Callable[[int, int], object] | None, rows: range, columns: int, empty: bool) -> Tensor:
    """A predicate over positions and candidates as a tensor."""
    return torch.tensor(
        [[bool(predicate(i, c)) if predicate else empty for c in range(columns)] for i in rows]
    ).reshape(len(rows), columns)


def python(expr: Expr | None) -> Callable[[int, int], object] | None:
    """A predicate as a Python function of i and c."""
    if expr is None:
        return None
    code = str(expr).replace("true", "True").replace("false", "False")
    return lambda i, c: eval(code, {"i": i, "c": c})


def check(
    run: Callable[..., None],
    s: Selector,
    tq: int,
    n: int,
    blocks: int,
    schedule: Schedule,
    offset: int = 0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Run the program and compare ids with brute force; the weights and the chosen scores for more checks."""
    torch.manual_seed(seed)
    dtype = getattr(torch, s.dtype)
    q, keys = torch.randn(2, tq, s.heads, s.dim).to(dtype), torch.randn(2, n, s.kv_heads, s.dim).to(dtype)
    lists = s.heads if s.group is None else s.kv_heads
    ids = torch.full((2, tq, lists, s.slots), 12345, dtype=torch.int32)
    weights = torch.full(ids.shape, math.nan)
    tensors = {"q": q, "keys": keys, "ids": ids, "w": weights}
    params = {"B": 2, "TQ": tq, "TK": 0, "q_offset": offset, "N": n, "NB": blocks}
    run(schedules.lower(s, schedule), tensors, params)
    rows = range(offset, offset + tq)
    visible = table(python(s.visible), rows, n, True)[:, None, :]
    score = brute_scores(s, q, keys, visible, blocks)
    eligible = table(python(s.eligible), rows, blocks, True)
    want, values = brute_choice(s, score, eligible, table(python(s.forced), rows, blocks, False))
    assert torch.equal(ids.long(), want)
    return weights, values.masked_fill(want < 0, math.nan)


@pytest.mark.parametrize("tq,n", [(1, 1), (16, 3), (37, 20), (53, 70)])
@pytest.mark.parametrize("order", ["score", "newest", "oldest"])
def test_per_head(run: Callable[..., None], order: str, tq: int, n: int) -> None:
    s = spec(order=order, heads=4, k=5, slots=5)
    check(run, s, tq, n, n, SMALL, offset=16 * n - tq // 2)
    check(run, s, tq, n, n, SMALL)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("group", ["sum", "mean", "max"])
@pytest.mark.parametrize("share", [1, 3, 5])
def test_linear_group(run: Callable[..., None], dtype: str, group: str, share: int) -> None:
    check(run, spec(heads=2 * share, group=group, dtype=dtype, dim=48), 21, 40, 40, SMALL, offset=500)


@pytest.mark.parametrize("share", [1, 3, 4])
@pytest.mark.parametrize("group", ["sum", "mean"])
def test_softmax_group(run: Callable[..., None], share: int, group: str) -> None:
    visible = 16 * C + 15 <= POS
    s = spec(heads=2 * share, softmax=True, group=group, visible=visible, eligible=C * 16 <= POS, scale=1.0)
    check(run, s, 45, 33, 33, SMALL, offset=0)
    check(run, s, 16, 33, 33, Schedule(rows=32, block=32), offset=300)
    check(run, s, 45, 33, 33, APART, offset=0)
    check(run, s, 40, 90, 90, APART, offset=1400)
    check(run, replace(s, forced=C < 2, k=3, slots=3), 16, 33, 33, replace(APART, block=32), offset=300)


@pytest.mark.parametrize("kind", ["overlap", "paper_literal", "max"])
@pytest.mark.parametrize("length", [64, 65, 250, 401])
def test_pools(run: Callable[..., None], kind: str, length: int) -> None:
    pool = Pool(kind, 32, 16, 64)
    if kind == "max":
        pool = Pool("max", 16, 16, 64, kernel=5, stride_blocks=4, padding=1)
    n, blocks = -(-length // 16), -(-length // 64)
    forced = (C < 1) | ((C <= POS // 64) & (POS // 64 - 1 <= C))
    s = spec(
        heads=6, softmax=True, group="sum", visible=16 * C + 31 <= POS, pool=pool, eligible=C * 64 <= POS,
        forced=forced, k=4, slots=4, order="oldest", scale=1.0,
    )  # fmt: skip
    check(run, s, min(length, 40), n, blocks, SMALL, offset=length - min(length, 40))
    check(run, s, min(length, 40), n, blocks, SMALL)
    if kind != "max":
        check(run, s, min(length, 40), n, blocks, APART, offset=length - min(length, 40))
        check(run, s, min(length, 40), n, blocks, APART)


@pytest.mark.parametrize("group", ["sum", "mean", "max", None])
@pytest.mark.parametrize("kind", ["overlap", "paper_literal", "", "one summary"])
def test_shares_from_sums_of_their_own(run: Callable[..., None], kind: str, group: str | None) -> None:
    """Long enough that tiles of blocks lie inside what all rows see."""
    pool = {"": None, "one summary": Pool("sum", 16, 16, 64, kernel=3, stride_blocks=4, padding=1)}.get(
        kind, Pool(kind, 32, 16, 64)
    )
    size, blocks = (16, 70) if pool is None else (64, 70)
    s = spec(
        heads=6, softmax=True, group=group, visible=16 * C + 31 <= POS, pool=pool, eligible=C * size <= POS,
        forced=(C == 0) | (POS // size == C), k=5, slots=5, order="oldest", scale=1.5,
    )  # fmt: skip
    if pool is not None and group == "max":
        with pytest.raises(ScheduleError, match="'apart' is for shares"):
            selector.lower(s, APART)
        return
    check(run, s, 37, 280 if pool else 70, blocks, APART, offset=size * blocks - 37)


def test_forced_members_come_on_top_of_k(run: Callable[..., None]) -> None:
    forced = (C < 2) | ((C <= POS // 16) & (POS // 16 - 1 <= C))
    s = spec(forced=forced, eligible=C * 16 <= POS, k=3, slots=7, count_forced=False)
    for order in ("score", "newest", "oldest"):
        check(run, replace(s, order=order), 50, 12, 12, SMALL, offset=140)
        check(run, replace(s, order=order), 50, 12, 12, SMALL)


def expected_weights(fn: str, scores: Tensor) -> Tensor:
    """Weights along the last dimension; NaN marks slots that hold nothing."""
    valid = ~scores.isnan()
    s = scores.masked_fill(~valid, -math.inf)
    if fn == "softmax":
        return torch.softmax(s, -1).nan_to_num()
    if fn == "softmax_sink":
        return torch.softmax(torch.cat([s, torch.zeros_like(s[..., :1])], -1), -1)[..., :-1]
    if fn == "stick":
        left = torch.cumprod(torch.cat([torch.ones_like(s[..., :1]), torch.sigmoid(-s)], -1), -1)[..., :-1]
        return torch.sigmoid(s) * left
    return torch.where(valid, scores if fn == "raw" else torch.sigmoid(scores), 0.0)


@pytest.mark.parametrize("fn", ["softmax", "softmax_sink", "stick", "sigmoid", "raw"])
@pytest.mark.parametrize("forced", [None, C < 1])
@pytest.mark.parametrize("scale", [0.25, 6.0])
def test_weights(run: Callable[..., None], fn: str, forced: Expr | None, scale: float) -> None:
    s = spec(weights=fn, order="newest", forced=forced, k=6, slots=6, scale=scale)
    for offset in (0, 120):
        weights, chosen = check(run, s, 40, 9, 9, SMALL, offset=offset)
        torch.testing.assert_close(weights.double(), expected_weights(fn, chosen), rtol=2e-5, atol=2e-5)


def test_ties_go_to_the_lowest_index(run: Callable[..., None]) -> None:
    ids = torch.full((1, 16, 1, 4), 9, dtype=torch.int32)
    q, keys = torch.zeros(1, 16, 1, 16), torch.randn(1, 40, 1, 16)
    s = spec(heads=1, kv_heads=1, eligible=None)
    params = {"B": 1, "TQ": 16, "TK": 640, "N": 40, "NB": 40}
    run(Lowered((Step(selector.lower(s, SMALL), SMALL),)), {"q": q, "keys": keys, "ids": ids}, params)
    assert ids.flatten().tolist() == [0, 1, 2, 3] * 16


def test_a_constant_predicate_is_legal(run: Callable[..., None]) -> None:
    check(run, spec(forced=constant(False), eligible=constant(True)), 9, 20, 20, SMALL)


def test_refusals_name_the_numbers() -> None:
    with pytest.raises(ScheduleError, match="8 rows x 16 keys"):
        selector.lower(spec(), Schedule(rows=8, block=16))


@pytest.mark.parametrize("target", ["triton:sm_90", "tvm:llvm"])
def test_default_schedules(run: Callable[..., None], target: str) -> None:
    s = spec(heads=6, group="mean", dim=80, weights="stick", order="newest")
    check(run, s, 70, 33, 33, selector.default(s, target), offset=460)
