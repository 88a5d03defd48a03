"""Gradients of queries and chunk weights of gathered attention, in the tile interpreter against autograd in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparsec.lower.gathered import chunk_grad, chunks
from sparsec.lower.gathered import grad as gathered_grad
from sparsec.lower.gathered import grad_schedules as gathered_grad_class
from sparsec.lower.gathered.chunks import read
from sparsec.lower.scalars import add, mul, sub
from sparsec.plan.specs import Capture, GatheredAttention
from sparsec.scalar.expr import Expr, element, var
from sparsec.scalar.functions import tanh
from sparsec.testing.kernels.gathered import Rule, Sizes, attention, draw, grad_q, truth
from sparsec.tile.language import TileOp
from sparsec.tile.schedule import Schedule, ScheduleError

H, ROW, KEY, SCORE = var("h"), var("i"), var("j"), var("score", "float")
Run = Callable[..., None]
OUTER = Schedule(order="query_outer", rows=16, block=16)
UNION = Schedule(order="tile_union", rows=32, block=16)
BOTH = pytest.mark.parametrize("schedule", [OUTER, UNION], ids=["outer", "union"])
SIZES = Sizes()
CAUSAL = KEY <= ROW


def causal(i: Tensor, j: Tensor, h: Tensor) -> Tensor:
    return j <= i


def poisoned(s: GatheredAttention, x: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs full of NaN."""
    return {
        "dq": torch.full_like(x["q"], math.nan, dtype=dtype),
        "dw": torch.full_like(x["w"], math.nan, dtype=torch.float64 if dtype == torch.float64 else torch.float32),
    }


def check(
    run: Run, s: GatheredAttention, schedule: Schedule = OUTER, n: Sizes = SIZES, rule: Rule | None = None
) -> None:
    """Run the programs of a schedule exactly and compare."""
    x = draw(s, n, torch.float64)
    want = truth(s, x, n.offset, rule)
    out = poisoned(s, x, torch.float64)
    given = {"lse": want["lse"], "delta": want["delta"]}
    run(gathered_grad_class.lower_q(grad_q(s), schedule), {**x, **given, **out}, n.params, mode="exact")
    torch.testing.assert_close(out["dq"], want["dq"], rtol=1e-9, atol=1e-9)
    if s.per == "joint":
        check_dots(run, s, schedule, n, x | {"lse": want["lse"]}, want)
    else:
        torch.testing.assert_close(out["dw"], want["dw"], rtol=1e-9, atol=1e-9)


def check_dots(
    run: Run, s: GatheredAttention, schedule: Schedule, n: Sizes, x: dict[str, Tensor], want: dict[str, Tensor]
) -> None:
    """The same where the kernel finds delta itself, and leaves it; and adds others' gradients to its own."""
    spec = replace(grad_q(s), dots=True, terms=("other", "third"))
    found = poisoned(s, x, torch.float64) | {"delta": torch.full_like(want["delta"], math.nan), "out": want["out"]}
    found |= {"other": x["q"] * 3.0, "third": x["do"].sum(-1, keepdim=True).expand_as(x["q"]).contiguous()}
    run(gathered_grad_class.lower_q(spec, schedule), {**x, **found}, n.params, mode="exact")
    torch.testing.assert_close(found["dq"], want["dq"] + found["other"] + found["third"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found["delta"], want["delta"], rtol=1e-9, atol=1e-9)


@BOTH
@pytest.mark.parametrize("group", [1, 3, 16])
@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_groups(run: Run, schedule: Schedule, per: str, group: int) -> None:
    check(run, attention(group, 1, per=per), schedule)


@BOTH
@pytest.mark.parametrize("scope", ["head", "kv_head", "token"])
@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_scopes(run: Run, schedule: Schedule, scope: str, per: str) -> None:
    check(run, attention(3, 2, scope=scope, per=per), schedule, n=replace(SIZES, batch=2))


@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_units_cut_into_row_tiles(run: Run, per: str) -> None:
    check(run, attention(18, 1, per=per), n=replace(SIZES, tq=5))
    check(run, attention(17, 2, per=per, scope="token", slots=2), n=replace(SIZES, tq=3, offset=72))
    check(run, attention(1, 2, per=per, scope="token", slots=2), n=Sizes(18, 75, 57))


@pytest.mark.parametrize("dims", [(48, 80), (64, 32)])
def test_head_dims(run: Run, dims: tuple[int, int]) -> None:
    n = Sizes(5, 40, 33)
    check(run, attention(2, 1, dims), n=n)
    check(run, attention(2, 1, dims), UNION, n)
    check(run, attention(2, 1, dims, per="chunk"), replace(OUTER, split_dims=False, rows=2), n)


@BOTH
@pytest.mark.parametrize("tq,tk,offset", [(1, 1, 0), (15, 15, 0), (17, 17, 0), (3, 61, 58), (21, 19, 0)])
def test_lengths(run: Run, schedule: Schedule, tq: int, tk: int, offset: int) -> None:
    for own, per in ((0.0, "joint"), (1.0, "chunk")):
        check(
            run,
            attention(3, 1, slots=5, per=per, where=CAUSAL),
            schedule,
            n=Sizes(tq, tk, offset, own=own),
            rule=causal,
        )


@BOTH
@pytest.mark.parametrize("per", ["joint", "chunk"])
@pytest.mark.parametrize("chunk,sink", [(32, None), (24, "zero"), (48, "sinks"), (16, "sinks")])
def test_chunks_read_in_parts(run: Run, schedule: Schedule, per: str, sink: str | None, chunk: int) -> None:
    check(run, attention(3, 1, per=per, chunk=chunk, slots=3, sink=sink), schedule, n=Sizes(7, 120, 113))


@pytest.mark.parametrize("chunk", [1, 2, 8])
def test_small_chunks_share_a_tile(run: Run, chunk: int) -> None:
    n = Sizes(7, 53, 46)
    check(run, attention(3, 2, chunk=chunk, slots=21), n=n)
    check(run, attention(3, 2, chunk=chunk, slots=21, counts="counts", scope="token"), n=n)


@BOTH
@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_counts_cut_the_lists(run: Run, schedule: Schedule, per: str) -> None:
    check(run, attention(3, 2, per=per, counts="counts"), schedule)


RULES: dict[str, tuple[Expr, Rule]] = {
    "causal": (CAUSAL, causal),
    "window": ((KEY <= ROW) & (ROW - KEY < 24), lambda i, j, h: (j <= i) & (i - j < 24)),
    "dilated": ((ROW - KEY) % 2 <= 0, lambda i, j, h: (i - j) % 2 == 0),
    "by_head": ((KEY <= ROW) & (ROW - KEY < (H + 1) * 9), lambda i, j, h: (j <= i) & (i - j < (h + 1) * 9)),
}


@BOTH
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_predicates(run: Run, schedule: Schedule, per: str, name: str) -> None:
    where, rule = RULES[name]
    check(run, attention(3, 1, per=per, where=where), schedule, rule=rule)
    check(run, attention(2, 1, per=per, where=where, chunk=32), schedule, n=Sizes(7, 50, 43), rule=rule)


BIAS = SCORE + tanh(SCORE) - element("slopes", H) * (ROW - KEY)


@BOTH
@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_score_functions(run: Run, schedule: Schedule, per: str) -> None:
    s = attention(3, 1, per=per, bias=BIAS, captures=(Capture("slopes", "float32", 1),))
    check(run, s, schedule)
    check(run, attention(2, 1, per=per, softcap=0.5), schedule)
    check(run, replace(s, softcap=0.5, where=CAUSAL), schedule, rule=causal)


def test_one_gradient_may_be_left_out(run: Run) -> None:
    s, n = attention(3, 1, per="chunk"), SIZES
    x = draw(s, n, torch.float64)
    want, out = truth(s, x, n.offset), poisoned(s, x, torch.float64)
    for asked in (replace(grad_q(s), grad_q=None), replace(grad_q(s), grad_weights=None)):
        run(gathered_grad_class.lower_q(asked, OUTER), {**x, **out}, n.params, mode="exact")
    for name in ("dq", "dw"):
        torch.testing.assert_close(out[name], want[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "group,dtype,schedule", [(4, "float32", OUTER), (16, "bfloat16", UNION), (4, "float16", OUTER)]
)
@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_storage_rounding(run: Run, per: str, schedule: Schedule, dtype: str, group: int) -> None:
    s, n = attention(group, 1, (64, 64), per=per, dtype=dtype, where=CAUSAL), Sizes(17, 128, 111)
    kind = getattr(torch, dtype)
    x = {name: t.to(kind) if name in ("q", "k", "v", "do") else t for name, t in draw(s, n, torch.float32).items()}
    want, out = truth(s, x, n.offset, causal), poisoned(s, x, kind)
    given = {name: want[name].float() for name in ("lse", "delta")}
    run(gathered_grad_class.lower_q(grad_q(s), schedule), {**x, **given, **out}, n.params)
    for name in ("dq", "dw") if per == "chunk" else ("dq",):
        error = (out[name].double() - want[name]).pow(2).mean().sqrt() / want[name].pow(2).mean().sqrt()
        assert float(error) <= {"float32": 1e-5, "bfloat16": 0.008, "float16": 0.001}[dtype]


def test_rows_that_see_nothing_have_no_gradient(run: Run) -> None:
    for per in ("joint", "chunk"):
        for where, ids in ((None, -1), (CAUSAL, 4)):
            s, n = attention(3, 1, per=per, where=where), Sizes(9, 75, 20)
            x = draw(s, n, torch.float32)
            x["ids"].fill_(ids)
            x["w"].fill_(0.5)
            want, out = truth(s, x, n.offset, causal), poisoned(s, x, torch.float32)
            given = {name: want[name].float() for name in ("lse", "delta")}
            schedule = OUTER if ids < 0 else UNION
            run(gathered_grad_class.lower_q(grad_q(s), schedule), {**x, **given, **out}, n.params)
            assert bool((out["dq"] == 0).all())
            assert per == "joint" or bool((out["dw"] == 0).all())


@pytest.mark.parametrize("target", ["triton:sm_90", "tvm:llvm"])
@pytest.mark.parametrize("group,chunk", [(1, 64), (16, 32), (4, 2), (2, 24)])
def test_default_schedules(run: Run, target: str, group: int, chunk: int) -> None:
    for per in ("joint", "chunk"):
        s = attention(group, 1, chunk=chunk, slots=3, per=per)
        check(run, s, gathered_grad_class.default_q(grad_q(s), target), Sizes(5, 150, 145))


def test_mistakes_are_seen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    s = attention(3, 1)

    def refused(s: GatheredAttention) -> None:
        for schedule in (OUTER, UNION):
            with pytest.raises(AssertionError):
                check(run, s, schedule)
        monkeypatch.undo()

    monkeypatch.setattr(chunk_grad, "sub", lambda a, b: a if b.op is TileOp.LOAD else sub(a, b))
    refused(s)  # the delta left out
    monkeypatch.setattr(gathered_grad, "mul", lambda a, b: a if b == s.scale else mul(a, b))
    refused(s)  # the scale
    monkeypatch.setattr(chunk_grad, "through", lambda f, key, ds: ds)
    refused(replace(s, softcap=0.5))  # the soft cap's derivative
    monkeypatch.setattr(chunks, "read", lambda f, name, key, column: read(f, name, add(key, 1), column))
    refused(s)  # a key off by one


def test_refusals_name_the_numbers() -> None:
    spec = grad_q(attention())
    with pytest.raises(ScheduleError, match="value_block 16"):
        gathered_grad_class.lower_q(spec, replace(OUTER, value_block=16))
    with pytest.raises(ScheduleError, match="8 rows x 16 keys"):
        gathered_grad_class.lower_q(spec, replace(OUTER, rows=8))
    with pytest.raises(ScheduleError, match="16 rows do not hold the 17 heads"):
        gathered_grad_class.lower_q(grad_q(attention(17, 1)), replace(UNION, rows=16))
    with pytest.raises(ScheduleError, match="no loop order 'inside_out'"):
        gathered_grad_class.lower_q(spec, replace(OUTER, order="inside_out"))
