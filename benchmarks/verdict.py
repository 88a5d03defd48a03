"""Whether an output is right: its error against the fp64 reference, over all checked rows and over the worst tile."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsec.benchmarks.cases import Case, Inputs
from sparsec.benchmarks.reference import TILE, Truth, sampled_rows, truth

LIMITS = {torch.float32: 2e-5, torch.float16: 0.003 / 8, torch.bfloat16: 0.003}
TILE_SLACK = 4 / 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """Root-mean-square error over root-mean-square truth; `rows` checked, of which `undecided` hung on a near tie."""

    passed: bool
    error: float
    worst_tile: float
    rows: int
    undecided: int
    reason: str = ""


class Referee:
    """Judges outputs of one case on one set of inputs; the reference is computed once."""

    def __init__(self, case: Case, inputs: Inputs, rows: Tensor | None = None) -> None:
        self.case = case
        self.truth: Truth = truth(case, inputs, sampled_rows(case) if rows is None else rows)

    def __call__(self, output: Tensor, slack: float = 1.0) -> Verdict:
        """Judge an output [B, T, H, D]; slack > 1 admits a peer that rounds more often than sparsec may."""
        expected, rows = self.truth.output, self.truth.rows
        shape = (self.case.B, self.case.T, self.case.H, expected.shape[-1])
        if tuple(output.shape) != shape:
            return Verdict(False, math.inf, math.inf, len(rows), 0, f"shape {tuple(output.shape)}, expected {shape}")
        decided = self.truth.decided[..., None]
        wrong = torch.where(decided, output[:, rows].double() - expected, 0.0)
        error, worst = _relative(wrong, expected, (0, 1, 2, 3)).item(), _worst_tile(wrong, expected)
        limit = LIMITS[self.case.dtype] * slack
        passed = error <= limit and worst <= limit * TILE_SLACK
        reason = "" if passed else f"error {error:.2e}, worst tile {worst:.2e}; the limit is {limit:.2e}"
        return Verdict(passed, error, worst, len(rows), int((~decided).sum()), reason)


def _relative(wrong: Tensor, expected: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Relative error over the axes; 0 where both are 0, infinite where only the truth is."""
    size, miss = expected.square().mean(axes), wrong.square().mean(axes)
    return torch.where(miss == 0, 0.0, (miss / size).sqrt())


def _worst_tile(wrong: Tensor, expected: Tensor) -> float:
    """Largest error of a tile of 64 rows of one batch entry and head."""
    tiles = zip(torch.split(wrong, TILE, 1), torch.split(expected, TILE, 1), strict=True)
    return max(_relative(w, e, (1, 3)).max().item() for w, e in tiles)
