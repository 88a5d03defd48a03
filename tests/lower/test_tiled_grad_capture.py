"""Gradients through biases that read captured tensors, and of those tensors; block lists from both sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from sparsec.plan.specs import BlockList, Capture, Piece, TiledAttention
from sparsec.scalar.expr import Expr, element, var
from sparsec.scalar.functions import maximum, minimum, tanh, where
from sparsec.testing.kernels.tiled import TiledCase, backward, truth
from sparsec.tile.schedule import Schedule

Run = Callable[..., None]
ROW, KEY, HEAD, BATCH = (var(x) for x in "ijhb")
SCORE = var("score", "float")
TILE = Schedule(rows=16, block=16, phases="split")
BRANCH = replace(TILE, phases="branch")

CAUSAL = KEY <= ROW
PARAMS = {"B": 2, "TQ": 21, "TK": 35, "q_offset": 14, "M": 7}
FAR = minimum(maximum(ROW - KEY, 0), 15)
BIASES: dict[str, tuple[Expr, tuple[int, ...]]] = {
    "slope of a head": (SCORE - element("c", HEAD) * (ROW - KEY), (4,)),
    "of batch and head": (SCORE * element("c", BATCH, HEAD), (2, 4)),
    "of a row": (SCORE + element("c", HEAD, ROW), (4, 35)),
    "of a key": (SCORE * tanh(element("c", KEY)) + element("c", 0), (35,)),
    "of a distance": (SCORE + element("c", HEAD, FAR), (4, 16)),
    "of a pair": (SCORE + where(KEY < 9, element("c", BATCH, HEAD, ROW, KEY), 0.0), (2, 4, 35, 35)),
    "of nothing else": (SCORE * element("c", 0), (1,)),
    "of segments": (SCORE + element("c", element("seg", KEY, kind="int")), (3,)),
}


def case(bias: Expr, shape: tuple[int, ...], mask: Expr | None = CAUSAL) -> TiledCase:
    """Tokens under a mask with a bias, and slots without."""
    capture = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    segments = torch.arange(35, dtype=torch.int32) // 12
    captures = (Capture("c", "float32", len(shape)), Capture("seg", "int32", 1))
    tokens = Piece("k", "v", "TK", mask, bias, captures)
    slots = Piece("mk", "mv", "M", batched=False, size=7)
    spec = TiledAttention("attend", "q", (tokens, slots), "out", "lse", 4, 2, 16, 16, 0.3, "float32", softcap=3.0)
    return TiledCase(spec, PARAMS, {"c": capture, "seg": segments})


def exact(run: Run, made: TiledCase, schedule: Schedule) -> None:
    """Without rounding."""
    found = backward(made, schedule, partial(run, mode="exact"), exact=True)
    for name, want in truth(made, made.draw()).items():
        if name.startswith("grad_"):
            assert torch.allclose(found[name], want, rtol=1e-8, atol=1e-8), name


@pytest.mark.parametrize("name", BIASES)
def test_biases(run: Run, name: str) -> None:
    exact(run, case(*BIASES[name]), BRANCH if name == "of a distance" else TILE)


DOCUMENTS = element("seg", ROW, kind="int") == element("seg", KEY, kind="int")
MASKS: dict[str, Expr] = {
    "documents": CAUSAL & DOCUMENTS,
    "documents both ways": DOCUMENTS,
    "widths of heads": CAUSAL & (3 + 4 * element("seg", HEAD * 8, kind="int") > ROW - KEY),
    "starts of rows": CAUSAL & (5 * element("seg", ROW, kind="int") <= KEY),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_captured_tensors(run: Run, name: str) -> None:
    exact(run, case(SCORE * element("c", HEAD), (4,), MASKS[name]), TILE)


def listed(where: Expr, heads: int = 1, per_batch: bool = False) -> TiledCase:
    """Tokens whose mask is read from a block list of 32 x 16."""
    made = case(SCORE - element("c", HEAD) * (ROW - KEY), (4,), where)
    tokens, slots = made.spec.pieces
    blocks = BlockList(
        "blocks", where, tokens.captures[1:], "ids", "counts", "TK", 32, 16, per_batch, heads
    )  # fmt: skip
    return replace(made, spec=replace(made.spec, pieces=(replace(tokens, listed=blocks), slots)))


@pytest.mark.parametrize("schedule", [TILE, BRANCH, replace(TILE, splits=2)], ids=["split", "branch", "shared"])
def test_block_lists(run: Run, schedule: Schedule) -> None:
    exact(run, listed(DOCUMENTS), schedule)
    exact(run, listed((ROW * 7 + KEY * 3 + HEAD) % 19 < 2, heads=4), schedule)
    exact(run, listed((ROW // 9 + KEY // 9 + BATCH) % 3 == 0, per_batch=True), schedule)
    exact(run, listed((KEY < 5) | ((ROW * 7 + KEY * 3 + BATCH + HEAD) % 19 < 2), heads=4, per_batch=True), schedule)
