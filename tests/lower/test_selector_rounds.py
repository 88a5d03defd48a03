"""Short lists by rounds: the same ids as rank keys that are sorted give, whatever the scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from sparsec.autotune.space import Space
from sparsec.frontends.preset import preset
from sparsec.lower.select import rounds, schedules, streaming
from sparsec.plan.specs import Selector
from sparsec.runtime.compiled import compile
from sparsec.scalar.expr import var
from sparsec.tile.schedule import Schedule, ScheduleError

POS, C = var("i"), var("c")
SORTED = Schedule(order="one_pass", rows=16, block=16, warps=2)
ROUNDS = replace(SORTED, order="rounds")
OWN = Selector(
    "select", "q", "keys", "ids", None, 2, 1, 16, "N", "NB", 0.25, 3, 3, "float32", eligible=C * 16 <= POS,
    forced=C == POS // 16,
)  # fmt: skip
KINDS = ("plain", "ties", "zeros of both signs", "NaN", "infinities")


def drawn(kind: str, tq: int, n: int, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and summaries whose scores are as the kind says."""
    torch.manual_seed(len(kind) + n)
    q, keys = torch.randn(1, tq, heads, 16), torch.randn(1, n, 1, 16)
    if kind == "ties":
        q, keys = (q * 2).round(), (keys * 2).round()[:, torch.randint(0, max(n // 4, 1), (n,))]
    if kind == "zeros of both signs":
        q, keys = torch.zeros_like(q), keys.sign()
    if kind == "NaN":
        keys[:, ::3] = math.nan
        keys[:, 1::6] = -keys[:, :1].expand_as(keys[:, 1::6])
    if kind == "infinities":
        q, keys = q.abs(), keys.abs()
        keys[:, ::2], keys[:, 1::4] = -math.inf, math.inf
    return q, keys


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tq", "n", "offset"), [(5, 1, 0), (37, 20, 300), (20, 70, 1100), (40, 9, 0)])
def test_ids_are_those_of_sorted_keys(run: Callable[..., None], kind: str, tq: int, n: int, offset: int) -> None:
    for spec in (OWN, replace(OWN, forced=None), replace(OWN, k=2), replace(OWN, k=4, slots=4, eligible=None)):
        q, keys = drawn(kind, tq, n, spec.heads)
        found = []
        for schedule in (SORTED, ROUNDS, replace(ROUNDS, block=32)):
            ids = torch.full((1, tq, 2, spec.slots), 12345, dtype=torch.int32)
            params = {"B": 1, "TQ": tq, "TK": 0, "q_offset": offset, "N": n, "NB": n}
            run(schedules.lower(spec, schedule), {"q": q, "keys": keys, "ids": ids}, params)
            found.append(ids)
        assert torch.equal(found[1], found[0]) and torch.equal(found[2], found[0])


def test_it_is_the_default_for_short_lists_of_heads_with_one_forced_member() -> None:
    layer = compile(preset("moba", block=512, k=3), "triton:sm_90")
    dims = {"B": 1, "T": 16384, "H": 8, "HKV": 2, "D": 128, "DV": 128, "q_offset": 0}
    spec = next(k.spec for k in layer.plan(dims, "bfloat16").kernels if isinstance(k.spec, Selector))
    assert rounds.fits(spec)
    assert streaming.space(spec, "triton:sm_90")["order"] == ("one_pass", "rounds")
    first, longer = streaming.default(spec, "triton:sm_90"), replace(spec, k=8, slots=8)
    assert (first.order, first.rows, first.block, first.descriptors) == ("rounds", 64, 16, True)
    others = (longer, replace(spec, dim=256), replace(spec, dtype="float32"), replace(spec, group="sum"))
    assert {streaming.default(s, "triton:sm_90").order for s in others} == {"one_pass"}
    assert streaming.default(spec, "triton:sm_80").order == "one_pass"
    assert [s.order for s in schedules.known(spec, "triton:sm_90")] == ["rounds", "one_pass"]
    assert [s.warps for s in schedules.known(replace(spec, dim=256), "triton:sm_90")] == [4, 8]
    for schedule in (first, *schedules.known(spec, "triton:sm_90")):
        Space(streaming.default(spec, "triton:sm_90"), streaming.space(spec, "triton:sm_90")).params(schedule)
        assert schedules.lower(spec, schedule).steps
    assert schedules.known(replace(spec, k=8, slots=8), "triton:sm_90") == ()
    for other in (replace(spec, forced=C <= 1), replace(spec, order="newest"), replace(spec, k=8, slots=8)):
        with pytest.raises(ScheduleError, match="order 'rounds'"):
            streaming.check(other, replace(ROUNDS, rows=64))
