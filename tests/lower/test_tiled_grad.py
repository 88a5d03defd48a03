"""Gradients of tiled attention in the tile interpreter against dense autograd in fp64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from sparsec.lower.registry import lower_kernel
from sparsec.oracle.error import Quantity, check
from sparsec.plan.specs import Piece, TiledAttention
from sparsec.scalar.expr import var
from sparsec.testing.kernels.tiled import TiledCase, backward, grad_kv, truth
from sparsec.tile.schedule import Schedule

Run = Callable[..., None]
ROW, KEY, HEAD, BATCH = (var(x) for x in "ijhb")
TILE = Schedule(rows=16, block=16, phases="split")
BRANCH = replace(TILE, phases="branch")
SHARED = replace(TILE, splits=3)
SHARED_BRANCH = replace(BRANCH, splits=3)

CAUSAL = KEY <= ROW
WINDOW = CAUSAL & (ROW - KEY < 20)
SINKS = CAUSAL & ((ROW - KEY < 20) | (KEY < 5))
TOKENS = Piece("k", "v", "TK", CAUSAL)
SLOTS = Piece("mk", "mv", "M", batched=False, size=21)
FULL = TiledAttention("attend", "q", (Piece("k", "v", "TK"),), "out", "lse", 2, 1, 16, 16, 0.3, "float32")
PARAMS = {"B": 2, "TQ": 37, "TK": 37, "q_offset": 0, "M": 21, "N0": 18}


def masked(where: object, **changes: object) -> TiledAttention:
    """Causal attention under another mask."""
    return replace(FULL, pieces=(replace(TOKENS, where=where),), **changes)  # type: ignore[arg-type]


SPECS: dict[str, TiledAttention] = {
    "full": FULL,
    "causal": masked(CAUSAL),
    "window": masked(WINDOW),
    "sinks": masked(SINKS),
    "group of 3": masked(WINDOW, heads=6, kv_heads=2),
    "one head": masked(WINDOW, heads=2, kv_heads=2),
    "head dims": masked(WINDOW, head_dim=80, value_dim=48),
    "per head": masked(CAUSAL & (ROW - KEY < 9 + 11 * HEAD)),
    "per batch": masked(CAUSAL & (ROW - KEY < 9 + 11 * BATCH)),
    "strided": masked(CAUSAL & ((ROW - KEY) % 4 == 0)),
    "blocks": masked(ROW // 16 == KEY // 16),
    "nothing for some": masked((KEY <= ROW) & (ROW >= 20)),
    "nothing": masked(KEY < 0),
    "slots": replace(FULL, pieces=(TOKENS, SLOTS)),
    "slots of heads": replace(FULL, pieces=(SLOTS, replace(SLOTS, k="k", v="v", length="TK", batched=True, size=None))),
    "masked slots": replace(FULL, pieces=(TOKENS, replace(SLOTS, where=(KEY + ROW) % 3 < 1 + HEAD)), heads=4),
    "slots per batch": replace(FULL, pieces=(TOKENS, replace(SLOTS, where=KEY < 7 + BATCH * 9))),
    "summaries": replace(FULL, pieces=(Piece("sk", "sv", "N0", KEY + KEY < ROW),)),
    "summaries beside tokens": replace(FULL, pieces=(TOKENS, Piece("sk", "sv", "N0", KEY + KEY < ROW))),
    "softcap": masked(WINDOW, softcap=2.0),
    "negative scale": masked(WINDOW, scale=-0.3),
    "sink of zero": masked(WINDOW, sink="zero"),
    "sink logits": masked(WINDOW, sink="sinks"),
}  # fmt: skip


def exact(run: Run, case: TiledCase, schedule: Schedule, **changes: object) -> None:
    """Without rounding, so that every term must be there."""
    found = backward(case, schedule, partial(run, mode="exact"), exact=True, **changes)  # type: ignore[arg-type]
    want = truth(case, case.draw())
    for name in [n for n in want if n.startswith("grad_")]:
        close = torch.allclose(found[name], want[name], rtol=1e-8, atol=1e-8)
        assert close, f"{name}: off by {float((found[name] - want[name]).abs().max())}"


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("schedule", [TILE, SHARED_BRANCH], ids=["split", "shared"])
def test_masks(run: Run, name: str, schedule: Schedule) -> None:
    exact(run, TiledCase(SPECS[name], PARAMS), schedule)


@pytest.mark.parametrize("name", ["sinks", "slots", "slots per batch", "per head"])
@pytest.mark.parametrize("schedule", [BRANCH, SHARED], ids=["branch", "shared"])
def test_schedules(run: Run, name: str, schedule: Schedule) -> None:
    exact(run, TiledCase(SPECS[name], PARAMS), schedule)


@pytest.mark.parametrize("rows,block", [(32, 16), (16, 32)])
def test_tiles(run: Run, rows: int, block: int) -> None:
    exact(run, TiledCase(SPECS["sinks"], PARAMS), replace(SHARED, rows=rows, block=block))


LENGTHS = [(1, 1, 0), (15, 15, 0), (16, 16, 0), (17, 17, 0), (5, 37, 32), (33, 16, 0), (37, 21, -16), (3, 41, 11)]


@pytest.mark.parametrize("tq,tk,offset", LENGTHS)
def test_lengths(run: Run, tq: int, tk: int, offset: int) -> None:
    schedule = SHARED_BRANCH if tk in (16, 37) else SHARED
    params = {"B": 2, "TQ": tq, "TK": tk, "q_offset": offset, "M": 21}
    spec = replace(SPECS["sinks"], pieces=(*SPECS["sinks"].pieces, SLOTS))
    exact(run, TiledCase(spec, params), schedule)
    exact(run, TiledCase(SPECS["blocks"], params), schedule)


def test_gradients_of_the_log_sum_exp(run: Run) -> None:
    for name in ("nothing for some", "sink logits", "slots"):
        exact(run, TiledCase(SPECS[name], PARAMS, lse_grad=True), TILE)


def test_apart(run: Run) -> None:
    exact(run, TiledCase(SPECS["sinks"], PARAMS), replace(SHARED, order="apart"))


@pytest.mark.parametrize("asked", ["grad_k", "grad_v"])
def test_one_gradient_alone(run: Run, asked: str) -> None:
    case = TiledCase(SPECS["slots"], PARAMS)
    given = case.draw()
    want = truth(case, given)
    for number, names in enumerate([("grad_k", "grad_v"), ("grad_mk", "grad_mv")]):
        whole = grad_kv(case, number)
        spec = replace(whole, grad_v=None) if asked == "grad_k" else replace(whole, grad_k=None)
        name = dict(zip(("grad_k", "grad_v"), names, strict=True))[asked]
        x = {**{n: t.double() for n, t in given.items()}, "lse": want["lse"]}
        x |= {"delta": (want["out"] * x["grad"]).sum(-1), name: torch.full_like(want[name], torch.nan)}
        run(lower_kernel(spec, SHARED), x, PARAMS, mode="exact")
        assert torch.allclose(x[name], want[name], rtol=1e-8, atol=1e-8)


ROUNDED: dict[str, TiledAttention] = {
    "sinks and slots": replace(
        masked(CAUSAL & ((ROW - KEY < 50) | (KEY < 5)), heads=4, kv_heads=2, head_dim=64, value_dim=64, scale=0.125),
        pieces=(replace(TOKENS, where=CAUSAL & ((ROW - KEY < 50) | (KEY < 5))), SLOTS),
    ),
    "long rows": masked(CAUSAL, head_dim=80, value_dim=48, scale=80**-0.5),
    "beside a sink": masked(CAUSAL, sink="sinks", softcap=20.0),
    "merged later": masked(WINDOW, out_dtype="float32", head_dim=32, value_dim=32, scale=32**-0.5),
}  # fmt: skip
DTYPES = ["float32", "float16", "bfloat16"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ROUNDED)
def test_rounding(run: Run, name: str, dtype: str) -> None:
    case = TiledCase(replace(ROUNDED[name], dtype=dtype), {**PARAMS, "TQ": 101, "TK": 101})
    held(backward(case, replace(SHARED, rows=32, block=64), run), case)


def held(found: dict[str, torch.Tensor], case: TiledCase) -> None:
    """Gradients within the bounds of the dtype."""
    want = truth(case, case.draw())
    for name in [n for n in want if n.startswith("grad_")]:
        kind: Quantity = "o" if name in ("grad_v", "grad_mv") else "grad"
        axis = 0 if name in ("grad_mk", "grad_mv") else 1
        found_verdict = check(found[name], want[name], case.spec.dtype, kind, axis)
        assert found_verdict, f"{name}: {found_verdict.sentence}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_beside_a_dominant_sink(run: Run, dtype: str) -> None:
    """They are far below one, where fp16 has few digits."""
    case = TiledCase(replace(SPECS["sink logits"], dtype=dtype), PARAMS, given={"sinks": torch.tensor([12.0, 11.0])})
    held(backward(case, TILE, run), case)
