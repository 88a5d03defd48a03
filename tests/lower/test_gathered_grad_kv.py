"""Gradients of keys and values of gathered attention, in the tile interpreter against autograd in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparsec.lower.gathered import chunk_grad, grad_walk
from sparsec.lower.gathered import grad_kv as gathered_grad_kv
from sparsec.lower.gathered import grad_schedules as gathered_grad_class
from sparsec.lower.inverse import index as inverse
from sparsec.lower.inverse import shares
from sparsec.lower.scalars import add, mul, sub
from sparsec.plan.specs import Capture, GatheredAttention
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import Expr, element, var
from sparsec.scalar.functions import tanh
from sparsec.testing.kernels.gathered import Rule, Sizes, attention, draw, grad_kv, truth
from sparsec.tile.language import TileOp
from sparsec.tile.schedule import Schedule, ScheduleError

H, ROW, KEY, SCORE = var("h"), var("i"), var("j"), var("score", "float")
Run = Callable[..., None]
KEY_OUTER = Schedule(order="key_outer", rows=16, block=16)
SIZES = Sizes()
CAUSAL = KEY <= ROW


def causal(i: Tensor, j: Tensor, h: Tensor) -> Tensor:
    return j <= i


def poisoned(x: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs full of NaN."""
    return {f"d{name}": torch.full_like(x[name], math.nan, dtype=dtype) for name in "kv"}


def check(
    run: Run, s: GatheredAttention, schedule: Schedule = KEY_OUTER, n: Sizes = SIZES, rule: Rule | None = None
) -> None:
    """Run the programs of a schedule exactly and compare."""
    x = draw(s, n, torch.float64)
    want = truth(s, x, n.offset, rule)
    out = poisoned(x, torch.float64)
    given = {"lse": want["lse"], "delta": want["delta"]}
    run(gathered_grad_class.lower_kv(grad_kv(s), schedule), {**x, **given, **out}, n.params, mode="exact")
    for name in ("dk", "dv"):
        torch.testing.assert_close(out[name], want[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("group", [1, 3, 4, 5, 16])
@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_groups(run: Run, per: str, group: int) -> None:
    check(run, attention(group, 1, per=per))


@pytest.mark.parametrize("scope", ["head", "kv_head", "token"])
@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_scopes(run: Run, scope: str, per: str) -> None:
    check(run, attention(3, 2, scope=scope, per=per), n=replace(SIZES, batch=2))


@pytest.mark.parametrize("dims", [(48, 80), (64, 32)])
def test_head_dims(run: Run, dims: tuple[int, int]) -> None:
    n = Sizes(5, 40, 33)
    check(run, attention(2, 1, dims), n=n)
    check(run, attention(2, 1, dims, per="chunk"), replace(KEY_OUTER, split_dims=False, rows=6), n)


@pytest.mark.parametrize("tq,tk,offset", [(1, 1, 0), (16, 16, 0), (17, 17, 0), (3, 61, 58), (29, 19, -5)])
def test_lengths(run: Run, tq: int, tk: int, offset: int) -> None:
    for own, per in ((0.0, "joint"), (1.0, "chunk")):
        check(run, attention(3, 1, slots=5, per=per, where=CAUSAL), n=Sizes(tq, tk, offset, own=own), rule=causal)


@pytest.mark.parametrize("per", ["joint", "chunk"])
@pytest.mark.parametrize("chunk,sink", [(32, None), (24, "zero"), (48, "sinks"), (8, None), (16, "zero")])
def test_chunks_and_tiles(run: Run, per: str, sink: str | None, chunk: int) -> None:
    n = Sizes(7, 115, 112)
    check(run, attention(3, 1, per=per, chunk=chunk, slots=3, sink=sink), n=n)
    check(run, attention(2, 1, per=per, chunk=chunk, slots=3, sink=sink), replace(KEY_OUTER, block=32, rows=32), n)


@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_counts_cut_the_lists(run: Run, per: str) -> None:
    check(run, attention(3, 2, per=per, counts="counts"))
    check(run, attention(3, 2, per=per, counts="counts", scope="head"))


RULES: dict[str, tuple[Expr, Rule]] = {
    "causal": (CAUSAL, causal),
    "window": ((KEY <= ROW) & (ROW - KEY < 24), lambda i, j, h: (j <= i) & (i - j < 24)),
    "dilated": ((ROW - KEY) % 2 <= 0, lambda i, j, h: (i - j) % 2 == 0),
    "by_head": ((KEY <= ROW) & (ROW - KEY < (H + 1) * 9), lambda i, j, h: (j <= i) & (i - j < (h + 1) * 9)),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_predicates(run: Run, per: str, name: str) -> None:
    where, rule = RULES[name]
    check(run, attention(3, 1, per=per, where=where), rule=rule)
    check(run, attention(2, 1, per=per, where=where, chunk=32, scope="head"), n=Sizes(9, 50, 31), rule=rule)


@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_score_functions(run: Run, per: str) -> None:
    bias = SCORE + tanh(SCORE) - element("slopes", H) * (ROW - KEY)
    s = attention(3, 1, per=per, bias=bias, captures=(Capture("slopes", "float32", 1),))
    check(run, s)
    check(run, attention(2, 1, per=per, softcap=0.5))
    check(run, replace(s, softcap=0.5, where=CAUSAL), rule=causal)


def test_one_gradient_may_be_left_out(run: Run) -> None:
    s, n = attention(3, 1), SIZES
    x = draw(s, n, torch.float64)
    want, out = truth(s, x, n.offset), poisoned(x, torch.float64)
    given = {"lse": want["lse"], "delta": want["delta"]}
    for asked in (replace(grad_kv(s), grad_k=None), replace(grad_kv(s), grad_v=None)):
        run(gathered_grad_class.lower_kv(asked, KEY_OUTER), {**x, **given, **out}, n.params, mode="exact")
    for name in ("dk", "dv"):
        torch.testing.assert_close(out[name], want[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("per", ["joint", "chunk"])
@pytest.mark.parametrize("scope", ["kv_head", "token"])
def test_a_chunk_that_everybody_chose_is_cut(run: Run, scope: str, per: str) -> None:
    """Chunks 0 and 2 are in every list: their entries make several shares; a chunk that nobody chose gets zeros."""
    s, n = attention(2, 2, per=per, scope=scope, slots=2), Sizes(40, 160, 120)
    x = draw(s, n, torch.float64)
    x["ids"][..., 0], x["ids"][..., 1] = 0, 2
    x["ids"][:, 3:7, :, 0] = 5
    x["w"] = torch.rand(x["ids"].shape, dtype=torch.float64)
    lowered = gathered_grad_class.lower_kv(grad_kv(s), KEY_OUTER)
    dims = {name: int(evaluate(value, {**n.params})) for name, value in lowered.params}
    assert dims["LT"] < 36 and dims["XT"] >= 4
    want, out = truth(s, x, n.offset), poisoned(x, torch.float64)
    run(lowered, {**x, "lse": want["lse"], "delta": want["delta"], **out}, n.params, mode="exact")
    for name in ("dk", "dv"):
        torch.testing.assert_close(out[name], want[name], rtol=1e-9, atol=1e-9)
    assert bool((out["dk"][:, 48:80] == 0).all())


@pytest.mark.parametrize("per", ["joint", "chunk"])
@pytest.mark.parametrize("schedule", [replace(KEY_OUTER, order="apart"), replace(KEY_OUTER, order="apart", splits=4)])
def test_orders_and_shorter_shares(run: Run, schedule: Schedule, per: str) -> None:
    check(run, attention(3, 2, per=per, where=CAUSAL), schedule, Sizes(40, 160, 120), causal)
    shorter = dict(gathered_grad_class.lower_kv(grad_kv(attention()), replace(schedule, splits=8)).params)
    longer = dict(gathered_grad_class.lower_kv(grad_kv(attention()), replace(schedule, splits=1)).params)
    lengths = [int(evaluate(x["LT"], {"TQ": 4096, "TK": 4096})) for x in (shorter, longer)]
    assert lengths[0] * 8 <= lengths[1] + 8 * KEY_OUTER.rows


@pytest.mark.parametrize("group,dtype", [(4, "float32"), (16, "bfloat16"), (4, "float16")])
@pytest.mark.parametrize("per", ["joint", "chunk"])
def test_storage_rounding(run: Run, per: str, dtype: str, group: int) -> None:
    s, n = attention(group, 1, (64, 64), per=per, dtype=dtype, where=CAUSAL), Sizes(17, 128, 111)
    kind = getattr(torch, dtype)
    x = {name: t.to(kind) if name in ("q", "k", "v", "do") else t for name, t in draw(s, n, torch.float32).items()}
    want, out = truth(s, x, n.offset, causal), poisoned(x, kind)
    given = {name: want[name].float() for name in ("lse", "delta")}
    run(gathered_grad_class.lower_kv(grad_kv(s), replace(KEY_OUTER, rows=64)), {**x, **given, **out}, n.params)
    for name, bound in (("dk", 0.008), ("dv", 0.003)):
        error = (out[name].double() - want[name]).pow(2).mean().sqrt() / want[name].pow(2).mean().sqrt()
        assert float(error) <= {"float32": 1e-5, "bfloat16": bound, "float16": bound / 8}[dtype]


def test_rows_that_see_nothing_give_nothing(run: Run) -> None:
    for per in ("joint", "chunk"):
        for where, ids in ((None, -1), (CAUSAL, 4)):
            s, n = attention(3, 1, per=per, where=where), Sizes(9, 75, 20)
            x = draw(s, n, torch.float32)
            x["ids"].fill_(ids)
            x["w"].fill_(0.5)
            want, out = truth(s, x, n.offset, causal), poisoned(x, torch.float32)
            given = {name: want[name].float() for name in ("lse", "delta")}
            run(gathered_grad_class.lower_kv(grad_kv(s), KEY_OUTER), {**x, **given, **out}, n.params)
            assert bool((out["dk"] == 0).all()) and bool((out["dv"] == 0).all())


def test_no_keys_at_all(run: Run) -> None:
    s, n = attention(2, 1), Sizes(3, 0, 0)
    x = draw(s, Sizes(3, 16, 0), torch.float32)
    x |= {name: x[name][:, :0] for name in "kv"} | {"ids": torch.full_like(x["ids"], -1)}
    given = {"lse": torch.full((1, 3, 2), -math.inf), "delta": torch.zeros(1, 3, 2)}
    run(gathered_grad_class.lower_kv(grad_kv(s), KEY_OUTER), {**x, **given, **poisoned(x, torch.float32)}, n.params)


def test_many_chunks_are_listed_in_turns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """More chunks and shares than a program lists at a time."""
    monkeypatch.setattr(shares, "CHUNKS", 8)
    monkeypatch.setattr(shares, "SHARES", 4)
    monkeypatch.setattr(inverse, "SEGMENT", 64)
    check(run, attention(2, 1, scope="head"), n=Sizes(20, 300, 280))


@pytest.mark.parametrize("chunk,slots", [(1, 2048), (16, 8), (64, 16), (512, 3)])
@pytest.mark.parametrize("tokens", [1, 700, 8192, 2**20])
def test_an_inverse_is_no_larger_than_a_few_lists(tokens: int, chunk: int, slots: int) -> None:
    """Tallies per chunk and segment do not grow with the square of the length, even where every token is a chunk."""
    s = attention(16, 1, chunk=chunk, slots=slots)
    found = {name: evaluate(e, {"TQ": tokens, "TK": tokens}) for name, e in inverse.params(s, KEY_OUTER, True)}
    assert found["CT"] * found["ST"] <= 2 * (tokens * slots + found["CT"])


@pytest.mark.parametrize("target", ["triton:sm_90", "tvm:llvm"])
@pytest.mark.parametrize("group,chunk", [(1, 64), (16, 32), (4, 2), (2, 24)])
def test_default_schedules(run: Run, target: str, group: int, chunk: int) -> None:
    for per in ("joint", "chunk"):
        s = attention(group, 1, chunk=chunk, slots=3, per=per)
        check(run, s, gathered_grad_class.default_kv(grad_kv(s), target), Sizes(5, 90, 85))


def test_mistakes_are_seen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    s, entry, choices = attention(3, 1), grad_walk.entry_at, inverse.choices

    def refused() -> None:
        with pytest.raises(AssertionError):
            check(run, s)
        monkeypatch.undo()

    monkeypatch.setattr(chunk_grad, "sub", lambda a, b: a if b.op is TileOp.LOAD else sub(a, b))
    refused()  # the delta left out
    monkeypatch.setattr(gathered_grad_kv, "mul", lambda a, b: a if b == s.scale else mul(a, b))
    refused()  # the scale
    monkeypatch.setattr(grad_walk, "entry_at", lambda walk, at: entry(walk, add(at, 1)))
    refused()  # an entry off by one
    monkeypatch.setattr(
        inverse, "choices", lambda spec, found, *rest: choices(spec, replace(found, complete=False), *rest)
    )
    refused()  # tokens' own chunks left out


def test_refusals_name_the_numbers() -> None:
    with pytest.raises(ScheduleError, match="16 rows do not hold the 17 heads"):
        gathered_grad_class.lower_kv(grad_kv(attention(17, 1)), KEY_OUTER)
    with pytest.raises(ScheduleError, match="no loop order 'query_outer'"):
        gathered_grad_class.lower_kv(grad_kv(attention()), replace(KEY_OUTER, order="query_outer"))
