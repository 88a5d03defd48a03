"""Attention over chosen chunks, key-outer, in the tile interpreter against plain torch in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsec.lower.gathered import chunks
from sparsec.lower.gathered import schedules as gathered_class
from sparsec.lower.inverse import index as inverse
from sparsec.lower.inverse import steps as inverse_steps
from sparsec.lower.lowered import Lowered, Step
from sparsec.plan.specs import Capture, GatheredAttention
from sparsec.scalar.expr import Expr, element, var
from sparsec.testing.kernels.gathered import attention
from sparsec.tile.schedule import Schedule, ScheduleError

H, ROW, KEY, SCORE = var("h"), var("i"), var("j"), var("score", "float")
CAUSAL = KEY <= ROW
Run = Callable[..., None]
Rule = Callable[[Tensor, Tensor, Tensor], Tensor]
KEY_OUTER = Schedule(order="key_outer", rows=64, block=16)


def spec(group: int = 4, kv_heads: int = 2, dims: tuple[int, int] = (32, 32), **changes: object) -> GatheredAttention:
    """Joint softmax over 3 chunks of 16 tokens, chosen by each query head."""
    return attention(group, kv_heads, dims, **{"scope": "head", "slots": 3, **changes})


def draw(
    s: GatheredAttention, tq: int, tk: int, offset: int, dtype: torch.dtype, batch: int, own: float
) -> dict[str, Tensor]:
    """Random inputs: started chunks in random order, -1 among them; a share ``own`` of the lists has its own chunk.

    Where it comes first, all that have one have it, and it does.
    """
    torch.manual_seed(0)
    lists, count = chunks.lists(s), -(-tk // s.chunk)
    mine = ((torch.arange(tq) + offset) // s.chunk).clamp_min(0)[None, :, None, None]
    rank = torch.rand(batch, tq, lists, count)
    rank = rank.masked_fill(torch.arange(count) == mine, 2.0 if own else -1.0)
    rank = rank.masked_fill(torch.arange(count) > mine, -1.0)
    best, ids = rank.topk(min(s.slots, count), -1)
    ids = ids.masked_fill((best < 0) | (torch.rand(ids.shape) < (0.15 if own < 1 else 0.0)), -1)
    if s.own_first:
        ids = ids.masked_fill((torch.arange(tq) + offset < 0)[None, :, None, None], -1)
    ids = torch.nn.functional.pad(ids, (0, s.slots - ids.shape[-1]), value=-1)
    order = torch.rand(ids.shape)
    ids = ids.gather(-1, (order.masked_fill(ids == mine, -1.0) if s.own_first else order).argsort(-1)).int()
    return {
        "q": torch.randn(batch, tq, s.heads, s.head_dim, dtype=dtype),
        "k": torch.randn(batch, tk, s.kv_heads, s.head_dim, dtype=dtype),
        "v": torch.randn(batch, tk, s.kv_heads, s.value_dim, dtype=dtype),
        "ids": ids.contiguous(),
        "w": torch.rand(ids.shape, dtype=dtype).masked_fill(ids < 0, math.nan),
        "counts": torch.randint(0, s.slots + 1, ids.shape[:3], dtype=torch.int32),
        "sinks": torch.randn(s.heads, dtype=dtype),
        "slopes": torch.rand(s.heads, dtype=dtype),
        "out": torch.full((batch, tq, s.heads, s.value_dim), math.nan, dtype=dtype),
        "lse": torch.full((batch, tq, s.heads), math.nan, dtype=dtype),
    }


def truth(s: GatheredAttention, x: dict[str, Tensor], offset: int, rule: Rule | None) -> tuple[Tensor, Tensor]:
    """Dense scores under masks, in fp64."""
    group, tq, tk = s.heads // s.kv_heads, x["q"].shape[1], x["k"].shape[1]
    k, v = (x[n].double().repeat_interleave(group, 2) for n in "kv")
    score = torch.einsum("bthd,bjhd->bthj", x["q"].double(), k) * s.scale
    score = s.softcap * torch.tanh(score / s.softcap) if s.softcap else score
    i, h, j = torch.arange(tq)[:, None, None] + offset, torch.arange(s.heads)[:, None], torch.arange(tk)
    score = score - x["slopes"].double()[h] * (i - j) if s.bias is not None else score
    ids = x["ids"].long().repeat_interleave(s.heads // x["ids"].shape[2], 2)
    if s.counts is not None:
        counts = x["counts"].repeat_interleave(s.heads // x["counts"].shape[2], 2)
        ids = ids.masked_fill(torch.arange(s.slots) >= counts[..., None], -1)
    shown = torch.ones(1, 1, dtype=torch.bool) if rule is None else rule(i, j, h)
    chosen = (ids[..., None] == j // s.chunk) & shown[..., None, :]
    sink = {None: -math.inf, "zero": 0.0, "sinks": x["sinks"].double()}[s.sink]
    sink = torch.as_tensor(sink, dtype=torch.float64).expand(s.heads)[:, None]

    def attend(visible: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.cat([score.masked_fill(~visible, -math.inf), sink.expand(*score.shape[:3], 1)], -1)
        p = torch.softmax(logits, -1).nan_to_num(0.0)[..., :-1]
        return torch.einsum("bthj,bjhe->bthe", p, v), torch.logsumexp(logits, -1)

    if s.per == "joint":
        return attend(chosen.any(-2))
    weights = x["w"].double().repeat_interleave(s.heads // x["w"].shape[2], 2).masked_fill(ids < 0, 0.0)
    parts = [weights[..., n, None] * attend(chosen[..., n, :])[0] for n in range(s.slots)]
    return torch.stack(parts).sum(0), torch.empty(0)


def check(
    run: Run,
    s: GatheredAttention,
    schedule: Schedule = KEY_OUTER,
    tq: int = 25,
    tk: int = 75,
    offset: int = 50,
    rule: Rule | None = None,
    batch: int = 1,
    own: float = 0.5,
) -> None:
    """Run the programs of a schedule exactly and compare."""
    x = draw(s, tq, tk, offset, torch.float64, batch, own)
    want, want_lse = truth(s, x, offset, rule)
    params = {"B": batch, "TQ": tq, "TK": tk, "q_offset": offset}
    run(gathered_class.lower(s, schedule), x, params, mode="exact")
    torch.testing.assert_close(x["out"], want, rtol=1e-9, atol=1e-9)
    if s.lse is not None:
        torch.testing.assert_close(x["lse"], want_lse, rtol=1e-9, atol=1e-9)


def causal(i: Tensor, j: Tensor, h: Tensor) -> Tensor:
    return j <= i


@pytest.mark.parametrize("group", [1, 3, 16])
@pytest.mark.parametrize("per", ["joint", "chunk"])
@pytest.mark.parametrize("scope", ["head", "kv_head", "token"])
def test_groups_and_scopes(run: Run, scope: str, per: str, group: int) -> None:
    check(run, spec(group, 2 if group < 16 else 1, scope=scope, per=per, where=CAUSAL), rule=causal)


@pytest.mark.parametrize("tq,tk,offset", [(25, 75, 50), (45, 29, -16), (30, 40, 20), (7, 7, 0)])
@pytest.mark.parametrize("slots", [2, 3, 5])
@pytest.mark.parametrize("chunk", [16, 24])
def test_own_chunk_first(run: Run, chunk: int, slots: int, tq: int, tk: int, offset: int) -> None:
    """Queries before the first key and after the last among them."""
    for where, rule in ((CAUSAL, causal), (None, None)):
        s = spec(3, 2, slots=slots, chunk=chunk, where=where, own_first=True)
        check(run, s, KEY_OUTER, tq, tk, offset, rule, own=1.0)
        check(run, replace(s, scope="kv_head"), KEY_OUTER, tq, tk, offset, rule, own=1.0)
        check(run, replace(s, per="chunk", weights="w", lse=None), KEY_OUTER, tq, tk, offset, rule, own=1.0)


def test_batches(run: Run) -> None:
    check(run, spec(2, 2), batch=2, tq=19, tk=50, offset=31)
    check(run, spec(3, 1, scope="kv_head", per="chunk"), batch=2, tq=19, tk=50, offset=31)


@pytest.mark.parametrize("dims", [(48, 80), (64, 32), (128, 48)])
def test_head_dims(run: Run, dims: tuple[int, int]) -> None:
    check(run, spec(2, 1, dims, where=CAUSAL), rule=causal)
    check(run, spec(2, 1, dims), replace(KEY_OUTER, value_block=16))
    check(run, spec(2, 1, dims, per="chunk"), replace(KEY_OUTER, split_dims=False))


@pytest.mark.parametrize("tq,tk,offset", [(1, 1, 0), (15, 15, 0), (16, 16, 0), (17, 17, 0), (3, 61, 58), (45, 29, -16)])
@pytest.mark.parametrize("where", [None, CAUSAL], ids=["all", "causal"])
def test_lengths(run: Run, where: Expr | None, tq: int, tk: int, offset: int) -> None:
    rule = None if where is None else causal
    for own in (0.0, 0.5, 1.0):
        check(run, spec(3, 1, slots=5, where=where), KEY_OUTER, tq, tk, offset, rule, own=own)
    check(run, spec(3, 1, slots=5, per="chunk", where=where), KEY_OUTER, tq, tk, offset, rule)


@pytest.mark.parametrize("per", ["joint", "chunk"])
@pytest.mark.parametrize(
    "chunk,block,rows,sink",
    [(64, 16, 32, None), (24, 16, 16, "zero"), (32, 32, 64, "sinks"), (512, 128, 32, "zero"), (16, 32, 16, "sinks")],
)
def test_chunks_and_tiles(run: Run, per: str, sink: str | None, chunk: int, block: int, rows: int) -> None:
    s = spec(2, 1, per=per, chunk=chunk, sink=sink, where=CAUSAL)
    length = 4 * chunk + 7
    check(run, s, replace(KEY_OUTER, block=block, rows=rows), 21, length, length - 21, causal)


@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_counts_cut_the_lists(run: Run, per: str) -> None:
    check(run, spec(3, 2, per=per, counts="counts"))
    check(run, spec(3, 2, per=per, counts="counts", scope="token", slots=5))


RULES: dict[str, tuple[Expr, Rule]] = {
    "window": ((KEY <= ROW) & (ROW - KEY < 24), lambda i, j, h: (j <= i) & (i - j < 24)),
    "sinks": ((KEY <= ROW) & ((ROW - KEY < 9) | (KEY < 5)), lambda i, j, h: (j <= i) & ((i - j < 9) | (j < 5))),
    "dilated": ((ROW - KEY) % 2 <= 0, lambda i, j, h: (i - j) % 2 == 0),
    "by_head": ((KEY <= ROW) & (ROW - KEY < (H + 1) * 9), lambda i, j, h: (j <= i) & (i - j < (h + 1) * 9)),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("chunk", [16, 24])
def test_predicates(run: Run, name: str, chunk: int) -> None:
    where, rule = RULES[name]
    check(run, spec(3, 2, where=where, chunk=chunk), rule=rule)
    check(run, spec(3, 1, per="chunk", scope="kv_head", where=where, chunk=chunk), rule=rule, own=1.0)


def test_score_functions(run: Run) -> None:
    bias = SCORE - element("slopes", H) * (ROW - KEY)
    s = spec(3, 2, bias=bias, captures=(Capture("slopes", "float32", 1),))
    check(run, s)
    check(run, replace(s, chunk=32, scope="kv_head"))
    check(run, replace(s, bias=None, captures=(), softcap=2.0))


def test_an_empty_row_is_zero(run: Run) -> None:
    s = spec(3, 1)
    x = draw(s, 9, 40, 31, torch.float64, 1, 0.5)
    x["ids"].fill_(-1)
    run(gathered_class.lower(s, KEY_OUTER), x, {"B": 1, "TQ": 9, "TK": 40, "q_offset": 31}, mode="exact")
    assert bool((x["out"] == 0).all()) and bool((x["lse"] == -math.inf).all())


def test_a_list_of_what_nobody_may_see_is_empty(run: Run) -> None:
    s = spec(2, 1, where=CAUSAL)
    x = draw(s, 9, 75, 20, torch.float64, 1, 0.5)
    x["ids"][:] = torch.tensor([-1, 4, 3])
    run(gathered_class.lower(s, KEY_OUTER), x, {"B": 1, "TQ": 9, "TK": 75, "q_offset": 20}, mode="exact")
    assert bool((x["out"] == 0).all()) and bool((x["lse"] == -math.inf).all())


def index(s: GatheredAttention, run: Run, ids: Tensor, tk: int, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """What the three programs of the inverse write: entries, tiles, number of tiles."""
    found = inverse.inverse(s, schedule)
    steps = tuple(Step(program, schedule) for program in inverse_steps.programs(s, schedule))
    most = ids.shape[1] * found.per_token // found.per_tile + -(-tk // s.chunk)
    entries = torch.full((ids.shape[0], found.sets, most * found.per_tile), -1, dtype=torch.int32)
    tiles = torch.full((ids.shape[0], found.sets, most, 2), -1, dtype=torch.int32)
    used = torch.full((ids.shape[0], found.sets), -1, dtype=torch.int32)
    own = {found.entries.name: entries, found.tiles.name: tiles, found.used.name: used}
    rest = tuple(b for b in inverse.scratch(s, schedule) if b.name not in own)
    lowered = Lowered(steps, rest, inverse.params(s, schedule))
    run(lowered, {"ids": ids, **own}, {"B": ids.shape[0], "TQ": ids.shape[1], "TK": tk, "q_offset": 10**6})
    return entries, tiles, used


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 70), st.integers(1, 40), st.integers(1, 5), st.integers(1, 3), st.integers(0, 99))
def test_the_inverse_lists_every_choice_once_in_order(
    run: Run, tokens: int, count: int, slots: int, group: int, seed: int
) -> None:
    torch.manual_seed(seed)
    s = spec(group, 2, slots=slots)
    ids = torch.randint(-1, count, (1, tokens, 2 * group, slots), dtype=torch.int32)
    entries, tiles, used = index(s, run, ids, 16 * count, KEY_OUTER)
    for number in range(2):
        flat = ids[0, :, number * group : (number + 1) * group].reshape(-1)
        found: list[tuple[int, int]] = []
        for place, (chunk, length) in enumerate(tiles[0, number].tolist()):
            first = place * KEY_OUTER.rows
            assert 0 <= length <= KEY_OUTER.rows and (length > 0) == (place < int(used[0, number]))
            found += [(chunk, e) for e in entries[0, number, first : first + length].tolist()]
        assert found == sorted((int(c), e) for e, c in enumerate(flat.tolist()) if c >= 0)


def test_many_chunks_and_segments(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """More chunks than a program holds, more segments than are summed at a time, several shares of tiles."""
    monkeypatch.setattr(inverse, "STEP", 16)
    monkeypatch.setattr(inverse, "SEGMENT", 32)
    monkeypatch.setattr(inverse_steps, "SEGMENTS", 4)
    monkeypatch.setattr(inverse_steps, "CHUNKS", 8)
    monkeypatch.setattr(inverse_steps, "TILES", 2)
    check(run, spec(3, 1, slots=4), tq=40, tk=600, offset=560)
    check(run, spec(1, 1, slots=4), replace(KEY_OUTER, rows=16), tq=120, tk=40, offset=0)


def test_refusals_name_the_numbers() -> None:
    with pytest.raises(ScheduleError, match="16 rows do not hold the 17 heads"):
        gathered_class.lower(spec(17, 1), replace(KEY_OUTER, rows=16))
    with pytest.raises(ScheduleError, match="use query_outer, tile_union, key_outer"):
        gathered_class.lower(spec(), replace(KEY_OUTER, order="inside_out"))


def test_key_outer_is_for_large_chunks_that_few_heads_share() -> None:
    moba = spec(4, 8, chunk=512)
    assert gathered_class.default(moba, "triton:sm_90").order == "key_outer"
    assert gathered_class.default(moba, "tvm:llvm").order == "query_outer"
    assert gathered_class.default(replace(moba, chunk=64), "triton:sm_90").order == "tile_union"
    many = spec(16, 4, chunk=512, scope="kv_head")
    assert gathered_class.default(many, "triton:sm_90").order == "tile_union"
    assert "key_outer" not in gathered_class.space(many, "triton:sm_90")["order"]


def test_programs_without_a_tile_end_at_once() -> None:
    """All of a program stands under one condition, so that those beyond the last tile read one number."""
    from sparsec.backends.triton.emit import emit

    step = gathered_class.lower(spec(), KEY_OUTER).steps[3]
    body = emit(step.program, step.schedule).partition("    if ")
    assert body[1] and "tl.dot" not in body[0] and "tl.store" not in body[0] and body[0].count("tl.load") == 1
