"""How ladders are made: chunk by chunk on every target; token by token where there is no such form."""

from __future__ import annotations

from sparsec.lower.fenwick import backward, forward, token, token_grad
from sparsec.lower.lowered import Lowered
from sparsec.lower.scan.cell import padded
from sparsec.plan.states.fenwick import unchunked
from sparsec.plan.states.fenwick_specs import Ladder, LadderGrad
from sparsec.plan.states.scan_specs import Writes
from sparsec.tile.schedule import Schedule

Choices = dict[str, tuple[object, ...]]

AGAIN = 16
"""Tokens after which a backward that goes token by token keeps the levels, and walks again from there."""


def lower(spec: Ladder, schedule: Schedule) -> Lowered:
    """The programs of a ladder."""
    return token.lower(spec, schedule) if schedule.order == "token" else forward.lower(spec, schedule)


def lower_grad(spec: LadderGrad, schedule: Schedule) -> Lowered:
    """The programs of a ladder's adjoint."""
    return token_grad.lower(spec, schedule) if schedule.order == "token" else backward.lower(spec, schedule)


def default(spec: Ladder | LadderGrad, target: str) -> Schedule:
    """Chunks of 64 tokens on a GPU; smaller ones on a CPU, where products of chunks are no cheaper than others."""
    w = spec.writes if isinstance(spec, Ladder) else spec.forward.writes
    if unchunked(spec) is not None:
        return _tokens(w, target, 8 if isinstance(spec, Ladder) else 4)
    columns = min(64, padded(w.cols))
    if target.startswith("triton"):
        return Schedule(order="chunk", rows=64, value_block=columns, warps=4, stages=2, keep=_keeps(spec))
    return Schedule(order="chunk", rows=32, value_block=columns, lanes=("e", "d", "n", "s"))


def _keeps(spec: Ladder | LadderGrad) -> bool:
    """Whether a backward reads its forward's blocks: of a delta rule, where to make them again is a sixth of a step."""
    return isinstance(spec, LadderGrad) and spec.forward.writes.rule == "delta"


def _tokens(w: Writes, target: str, columns: int) -> Schedule:
    """Token by token; a GPU's program holds few columns, since it holds those of all levels."""
    if not target.startswith("triton"):
        return Schedule(order="token", lanes=("e", "d"), split_dims=False, block=AGAIN)
    return Schedule(order="token", value_block=min(columns, padded(w.cols)), warps=32 // columns, stages=1, block=AGAIN)


def space(spec: Ladder | LadderGrad, target: str) -> Choices:
    """Tokens of a chunk, value columns of a program, and how programs run."""
    if unchunked(spec) is not None:
        return {"value_block": (4, 8, 16), "warps": (1, 2, 4, 8)} if target.startswith("triton") else {}
    if target.startswith("triton"):
        kept = {"keep": (False, True)} if isinstance(spec, LadderGrad) else {}
        return {"rows": (32, 64), "value_block": (32, 64, 128), "warps": (4, 8), "stages": (1, 2, 3), **kept}
    return {"rows": (16, 32, 64), "value_block": (16, 32, 64)}
