"""How scans are made: by the token recurrence."""

from __future__ import annotations

from sparsec.lower.lowered import Lowered
from sparsec.lower.scan import token, token_grad
from sparsec.lower.scan.cell import padded
from sparsec.plan.scan_specs import Scan, ScanGrad
from sparsec.tile.schedule import Schedule

Choices = dict[str, tuple[object, ...]]


def lower(spec: Scan, schedule: Schedule) -> Lowered:
    """The programs of a scan."""
    return token.lower(spec, schedule)


def lower_grad(spec: ScanGrad, schedule: Schedule) -> Lowered:
    """The programs of a scan's adjoint."""
    return token_grad.lower(spec, schedule)


def default(spec: Scan, target: str) -> Schedule:
    """On a GPU a narrow tile of columns per program, on a CPU the whole state."""
    if target.startswith("triton"):
        return Schedule(order="token", value_block=min(16, padded(spec.writes.cols)), warps=1, stages=1)
    return Schedule(order="token", lanes=("e", "d"), split_dims=False)


def default_grad(spec: ScanGrad, target: str) -> Schedule:
    """As ``default``; states are kept before every 16 tokens, and walked from in groups of 4 on a CPU."""
    if target.startswith("triton"):
        cols = spec.forward.writes.cols
        return Schedule(order="token", value_block=min(16, padded(cols)), block=16, rows=1, warps=2, stages=1)
    return Schedule(order="token", block=16, rows=4, lanes=("e", "d"), split_dims=False)


def space(spec: Scan, target: str) -> Choices:
    """Columns per program."""
    if target.startswith("triton"):
        return {"value_block": (8, 16, 32), "warps": (1, 2, 4)}
    return {"value_block": (0, 16, 32, 64)}


def space_grad(spec: ScanGrad, target: str) -> Choices:
    """Columns per program, tokens between states that are kept, and tokens held at once."""
    if target.startswith("triton"):
        return {"value_block": (8, 16, 32), "block": (8, 16, 32), "rows": (1, 2), "warps": (1, 2, 4)}
    return {"block": (8, 16, 32, 64), "rows": (1, 2, 4, 8)}
