"""The online softmax: what stands for a masked pair survives fused multiply-adds, and a sink joins after the keys."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparsec.lower.registry import lower_kernel
from sparsec.lower.softmax import HIDDEN, LOG2E, NOTHING
from sparsec.plan.specs import GatheredAttention, Piece, TiledAttention
from sparsec.scalar.expr import var
from sparsec.tile.schedule import Schedule

Run = Callable[..., None]
Attention = TiledAttention | GatheredAttention
HEADS, DIM, KEYS, CHUNK = 2, 32, 40, 16
TILED = TiledAttention(
    "attend", "q", (Piece("k", "v", "TK"),), "out", "lse", HEADS, 1, DIM, DIM, DIM**-0.5, "float16", None, "sinks",
    "float32",
)  # fmt: skip
JOINT = GatheredAttention(
    "attend", "q", "k", "v", "ids", None, "out", "lse", "kv_head", 3, CHUNK, HEADS, 1, DIM, DIM, DIM**-0.5, "float16",
    sink="sinks", out_dtype="float32",
)  # fmt: skip
OWN = replace(JOINT, per="chunk", weights="w", lse=None)
TILE = Schedule(rows=16, block=16)
SINKING: dict[str, tuple[Attention, Schedule]] = {
    "tiled": (TILED, TILE),
    "query-outer": (JOINT, replace(TILE, order="query_outer")),
    "tile-union": (JOINT, replace(TILE, order="tile_union")),
    "key-outer": (JOINT, replace(TILE, order="key_outer")),
    "query-outer per chunk": (OWN, replace(TILE, order="query_outer")),
    "query-outer per chunk in parts": (replace(OWN, chunk=32, slots=2), replace(TILE, order="query_outer")),
    "tile-union per chunk": (OWN, replace(TILE, order="tile_union")),
    "key-outer per chunk": (OWN, replace(TILE, order="key_outer")),
}


@pytest.mark.parametrize("dim", [16, 48, 64, 80, 96, 128, 192, 576])
def test_a_masked_tile_has_weight_one_even_when_fused(dim: int) -> None:
    scale = torch.tensor(dim**-0.5 * LOG2E, dtype=torch.float32)
    rounded = torch.tensor(HIDDEN, dtype=torch.float32) * scale
    residual = HIDDEN * float(scale) - float(rounded)
    assert residual == 0.0, "exp2 of this is what a fused multiply-add gives a masked pair"
    assert float(rounded) < NOTHING and math.isfinite(float(rounded))


def draw(spec: Attention, dtype: str, sink: float) -> dict[str, Tensor]:
    """Queries at the last positions; every query lists every chunk."""
    torch.manual_seed(0)
    slots = getattr(spec, "slots", 0)
    shapes = {"q": (1, 9, HEADS, DIM), "k": (1, KEYS, 1, DIM), "v": (1, KEYS, 1, DIM)}
    return {name: torch.randn(shape).to(getattr(torch, dtype)) for name, shape in shapes.items()} | {
        "ids": torch.arange(slots, dtype=torch.int32).repeat(1, 9, 1, 1),
        "w": torch.rand(1, 9, 1, slots) + 0.5,
        "sinks": torch.tensor([sink, sink - 1.0]),
        "out": torch.full((1, 9, HEADS, DIM), math.nan),
        "lse": torch.full((1, 9, HEADS), math.nan),
    }


def truth(spec: Attention, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Dense, in fp64; the log-sum-exp of the last set of keys under one softmax."""
    score = torch.einsum("bthd,bjd->bthj", x["q"].double(), x["k"][:, :, 0].double()) * DIM**-0.5
    sink = x["sinks"].double().expand(1, 9, HEADS)[..., None]
    own = spec.chunk if isinstance(spec, GatheredAttention) and spec.per == "chunk" else KEYS
    out, lse = torch.zeros(1, 9, HEADS, DIM, dtype=torch.float64), sink
    for number, low in enumerate(range(0, KEYS, own)):
        logits = torch.cat([score[..., low : low + own], sink], -1)
        lse = torch.logsumexp(logits, -1)
        part = torch.einsum(
            "bthj,bje->bthe", torch.softmax(logits, -1)[..., :-1], x["v"][:, low : low + own, 0].double()
        )
        out += part if own == KEYS else part * x["w"][..., number, None]
    return out, lse


@pytest.mark.parametrize("dtype,bound", [("float16", 3.75e-4), ("bfloat16", 3e-3), ("float32", 1e-6)])
@pytest.mark.parametrize("sink", [-30.0, 0.0, 14.0])
@pytest.mark.parametrize("name", SINKING)
def test_weights_beside_a_dominant_sink_keep_their_digits(
    run: Run, name: str, sink: float, dtype: str, bound: float
) -> None:
    spec, schedule = SINKING[name]
    spec = replace(spec, dtype=dtype)
    x = draw(spec, dtype, sink)
    want, lse = truth(spec, x)
    run(lower_kernel(spec, schedule), x, {"B": 1, "TQ": 9, "TK": KEYS, "q_offset": KEYS - 9})
    error = (x["out"].double() - want).pow(2).mean().sqrt() / want.pow(2).mean().sqrt()
    assert float(error) <= bound
    if spec.lse is not None:
        torch.testing.assert_close(x["lse"].double(), lse, rtol=0.0, atol=5e-4 if dtype != "float32" else 1e-5)


@pytest.mark.parametrize("sink", [2.5, -200.0, -math.inf])
@pytest.mark.parametrize("name", SINKING)
def test_a_row_without_keys_has_the_sink(run: Run, name: str, sink: float) -> None:
    spec, schedule = SINKING[name]
    x = draw(spec, "float32", sink)
    hidden = var("j") < 0
    if isinstance(spec, TiledAttention):
        spec = replace(spec, dtype="float32", pieces=(replace(spec.pieces[0], where=hidden),))
    else:
        spec = replace(spec, dtype="float32", where=hidden)
    run(lower_kernel(spec, schedule), x, {"B": 1, "TQ": 9, "TK": KEYS, "q_offset": KEYS - 9})
    assert bool((x["out"] == 0).all())
    if spec.lse is not None:
        torch.testing.assert_close(x["lse"], x["sinks"].expand(1, 9, HEADS))
