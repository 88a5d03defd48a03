"""Gradients of tiled attention in the tile interpreter against dense autograd in fp64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from sparsec.plan.specs import Piece, TiledAttention
from sparsec.scalar.expr import var
from sparsec.testing.tiled_case import TiledCase, backward, truth
from sparsec.tile.schedule import Schedule

Run = Callable[..., None]
ROW, KEY, HEAD, BATCH = (var(x) for x in "ijhb")
TILE = Schedule(rows=16, block=16, phases="split")
BRANCH = replace(TILE, phases="branch")
SPLIT = replace(TILE, splits=3)
SCHEDULES = {"split": TILE, "branch": BRANCH, "shared": SPLIT, "shared branch": replace(SPLIT, phases="branch")}

CAUSAL = KEY <= ROW
WINDOW = CAUSAL & (ROW - KEY < 20)
SINKS = CAUSAL & ((ROW - KEY < 20) | (KEY < 5))
TOKENS = Piece("k", "v", "TK", CAUSAL)
SLOTS = Piece("mk", "mv", "M", batched=False, size=21)
FULL = TiledAttention("attend", "q", (Piece("k", "v", "TK"),), "out", "lse", 2, 1, 16, 16, 0.3, "float32")
PARAMS = {"B": 2, "TQ": 37, "TK": 37, "q_offset": 0, "M": 21}


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
@pytest.mark.parametrize("kind", SCHEDULES)
def test_masks(run: Run, name: str, kind: str) -> None:
    exact(run, TiledCase(SPECS[name], PARAMS), SCHEDULES[kind])
