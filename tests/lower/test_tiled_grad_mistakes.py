"""Backward kernels with one mistake each give other gradients: what the checks of the backward must refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from sparsec.plan.specs import Piece, TiledAttention
from sparsec.scalar.expr import var
from sparsec.scalar.fn import Fn
from sparsec.testing.kernels.tiled import TiledCase, backward, truth
from sparsec.testing.mistakes.mutants import Args, Change, mutated
from sparsec.testing.mistakes.named import first_tile_skipped, future_column_unmasked, is_map, last_tile_skipped
from sparsec.tile import build as tile
from sparsec.tile.language import Node, TileOp, access_of
from sparsec.tile.schedule import Schedule

Run = Callable[..., None]
ROW, KEY = var("i"), var("j")
MASK = (KEY <= ROW) & ((ROW - KEY < 20) | (KEY < 5))
SPEC = TiledAttention("attend", "q", (Piece("k", "v", "TK", MASK),), "out", "lse", 2, 1, 16, 16, 0.3, "float32")
CASE = TiledCase(SPEC, {"B": 1, "TQ": 37, "TK": 37, "q_offset": 0})
SCHEDULE = Schedule(rows=16, block=16, phases="split", splits=3)


def loads(node: Node, name: str) -> bool:
    """Whether a node reads a tensor."""
    return node.op is TileOp.LOAD and access_of(node).tensor.name == name


def delta_left_out(node: Node, args: Args) -> Node | None:
    """ds = p * dp, delta read or found in passing."""
    found = is_map(node, Fn.SUB) and (loads(node.args[1], "delta") or node.args[1].op is TileOp.REDUCE)
    return args[0] if found else None


def scale_missing(node: Node, args: Args) -> Node | None:
    """Sums are stored as they are."""
    scales = is_map(node, Fn.MUL) and node.args[1].op is TileOp.CONST and node.args[1].attrs[0] == SPEC.scale
    return args[0] if scales else None


def lse_of_another_head(node: Node, args: Args) -> Args | None:
    """Every head takes the log-sum-exp of the first."""
    return (*args[:2], tile.const(0), *args[3:]) if loads(node, "lse") else None


def weights_unmasked(node: Node, args: Args) -> Node | None:
    """Hidden pairs keep their scores."""
    return args[1] if is_map(node, Fn.WHERE) and len(node.axes) == 2 else None


def share_left_out(node: Node, args: Args) -> Args | None:
    """Where shares of wide keys are added up, the first stands for all."""
    parts = node.op is TileOp.LOAD and access_of(node).tensor.name.endswith("_parts")
    return (tile.const(0), *args[1:]) if parts else None


QKV = {"grad_q", "grad_k", "grad_v"}
MISTAKES: dict[str, tuple[Change, set[str]]] = {
    "delta left out": (delta_left_out, {"grad_q", "grad_k"}),
    "scale missing": (scale_missing, {"grad_q", "grad_k"}),
    "log-sum-exp of another head": (lse_of_another_head, QKV),
    "weights unmasked": (weights_unmasked, QKV),
    "future column": (future_column_unmasked, QKV),
    "first tile": (first_tile_skipped, QKV),
    "last tile": (last_tile_skipped, QKV),
    "share left out": (share_left_out, {"grad_k", "grad_v"}),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_show(run: Run, name: str) -> None:
    change, expected = MISTAKES[name]
    made = partial(mutated, change=change)
    found = backward(CASE, SCHEDULE, partial(run, mode="exact"), change=made, exact=True)
    want = truth(CASE, CASE.draw())
    wrong = {n for n in QKV if not torch.allclose(found[n], want[n], rtol=1e-2, atol=1e-3)}
    assert wrong == expected


def test_fp16_without_care_for_faint_weights(run: Run) -> None:
    """Beside a dominant sink, rounding weights as they are to fp16 loses their digits."""
    scaled = {"sinks": torch.tensor([15.0, 14.0]), "grad": torch.full((1, 37, 2, 16), 300.0, dtype=torch.float16)}
    case = replace(CASE, spec=replace(SPEC, dtype="float16", sink="sinks"), given=scaled)

    def plain(node: Node, args: Args) -> Node | None:
        most = is_map(node, Fn.MAXIMUM) and node.args[0].op is TileOp.REDUCE
        return tile.full(1.0, *node.axes) if most else None

    want = truth(case, case.draw())["grad_v"]
    errors = []
    for change in (lambda x: x, partial(mutated, change=plain)):
        found = backward(case, SCHEDULE, run, change=change)["grad_v"].double()
        errors.append(float((found - want).norm() / want.norm()))
    assert errors[0] < 4e-4 < 1e-3 < errors[1]
