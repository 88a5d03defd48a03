"""Whether an output is right: its error against the fp64 reference, over all checked rows and over the worst tile."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsec.benchmarks.attention_fp64 import members_of
from sparsec.benchmarks.cases import Case, Inputs
from sparsec.benchmarks.cases_nsa import SelectorCase
from sparsec.benchmarks.reference import TILE, Truth, sampled_rows, truth

LIMITS = {torch.float32: 2e-5, torch.float16: 0.003 / 8, torch.bfloat16: 0.003}
TILE_SLACK = 4 / 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """Root-mean-square error over root-mean-square truth; `rows` checked, `undecided` heads of rows hung on a near tie.

    Of a selector alone, `error` and `worst_tile` are the shares of decided lists that differ.
    """

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
        if isinstance(self.case, SelectorCase):
            return self._of_lists(self.case, output)
        expected, rows = self.truth.output, self.truth.rows
        shape = (self.case.B, self.case.T, self.case.H, expected.shape[-1])
        if tuple(output.shape) != shape:
            return Verdict(False, math.inf, math.inf, len(rows), 0, f"shape {tuple(output.shape)}, expected {shape}")
        decided = self.truth.decided(self.case.tie if slack <= 1 else self.case.peer_tie)[..., None]
        wrong = torch.where(decided, output[:, rows].double() - expected, 0.0)
        error, worst = _relative(wrong, expected, (0, 1, 2, 3)).item(), _worst_tile(wrong, expected)
        limit = LIMITS[self.case.dtype] * slack
        passed = error <= limit and worst <= limit * TILE_SLACK
        reason = "" if passed else f"error {error:.2e}, worst tile {worst:.2e}; the limit is {limit:.2e}"
        return Verdict(passed, error, worst, len(rows), int((~decided).sum()), reason)

    def _of_lists(self, case: SelectorCase, lists: Tensor) -> Verdict:
        """Lists [B, T, HKV, slots] are sets that must be the reference's wherever no near tie decides."""
        truth, decided = self.truth, self.truth.decided(case.tie)
        wanted = (case.B, case.T, case.HKV, case.slots)
        if tuple(lists.shape) != wanted:
            reason = f"shape {tuple(lists.shape)}, expected {wanted}"
            return Verdict(False, math.inf, math.inf, len(truth.rows), 0, reason)
        found = members_of(lists[:, truth.rows].flatten(0, 2), truth.output.shape[-1]).view(truth.output.shape)
        wrong = ((found != truth.output).any(-1) & decided).double()
        worst = max(tile.mean((1,)).max().item() for tile in torch.split(wrong, TILE, 1))
        count = int(wrong.sum())
        reason = f"{count} of {int(decided.sum())} lists are not the best {case.slots}" if count else ""
        share = count / max(int(decided.sum()), 1)
        return Verdict(not count, share, worst, len(truth.rows), int((~decided).sum()), reason)


def _relative(wrong: Tensor, expected: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Relative error over the axes; 0 where both are 0, infinite where only the truth is."""
    size, miss = expected.square().mean(axes), wrong.square().mean(axes)
    return torch.where(miss == 0, 0.0, (miss / size).sqrt())


def _worst_tile(wrong: Tensor, expected: Tensor) -> float:
    """Largest error of a tile of 64 rows of one batch entry and head."""
    tiles = zip(torch.split(wrong, TILE, 1), torch.split(expected, TILE, 1), strict=True)
    return max(_relative(w, e, (1, 3)).max().item() for w, e in tiles)
