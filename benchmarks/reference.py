"""Plain fp64 truth of every case, row by row from dense scores, for all rows or for sampled tiles of 64 rows.

Independent of sparsec and of the peers. A row whose selection hangs on a near tie is reported as undecided: fp32 and
fp64 may then choose differently, and both are right.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsec.benchmarks.cases import Case, HsaCase, Inputs, MobaCase, SelectedCase, WindowCase

TILE = 64
TIE = 1e-5


@dataclass(frozen=True, slots=True)
class Truth:
    """Outputs [B, R, H, D] of the rows, and which of them [B, R, H] no near tie leaves open."""

    rows: Tensor
    output: Tensor
    decided: Tensor


def sampled_rows(case: Case, tiles: int = 5) -> Tensor:
    """Rows of `tiles` whole tiles spread from the first to the last."""
    count = math.ceil(case.T / TILE)
    starts = torch.linspace(0, count - 1, min(tiles, count)).round().long() * TILE
    rows = (starts[:, None] + torch.arange(TILE)).flatten()
    return rows[rows < case.T].to(case.device)


def truth(case: Case, inputs: Inputs, rows: Tensor) -> Truth:
    """The case's output at these rows, in fp64."""
    parts = [_batch(case, {name: x[b] for name, x in inputs.items()}, rows) for b in range(case.B)]
    return Truth(rows, torch.stack([o for o, _ in parts]), torch.stack([d for _, d in parts]))


def _batch(case: Case, inputs: Inputs, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Output and decided rows of one batch entry, head by head so that dense scores stay small."""
    heads = [
        head_output(case, {name: of_head(case, name, x, h) for name, x in inputs.items()}, rows) for h in range(case.H)
    ]
    return torch.stack([o for o, _ in heads], 1), torch.stack([d for _, d in heads], 1)


def of_head(case: Case, name: str, tensor: Tensor, h: int) -> Tensor:
    """One head's slice: queries have H heads, everything else HKV."""
    picked = tensor[:, h if name == "q" else h // case.group]
    return picked.double() if picked.is_floating_point() else picked.long()


def head_output(case: Case, x: Inputs, rows: Tensor) -> tuple[Tensor, Tensor]:
    """One head's output at some rows in fp64, and which rows no near tie leaves open."""
    scores = x["q"][rows] @ x["k"].T / math.sqrt(case.D)
    decided = torch.ones_like(rows, dtype=torch.bool)
    match case:
        case WindowCase():
            return _softmax(scores, _window(case, rows)) @ x["v"], decided
        case SelectedCase():
            return _softmax(scores, _given(case, x["indices"][rows], rows)) @ x["v"], decided
        case MobaCase():
            allowed, decided = _moba(case, x, rows)
            return _softmax(scores, allowed) @ x["v"], decided
        case HsaCase():
            return _hsa(case, x, scores, rows)
        case _:
            raise TypeError(f"no reference for {type(case).__name__}")


def _softmax(scores: Tensor, allowed: Tensor) -> Tensor:
    """Softmax over the allowed keys; a row without any is 0."""
    return scores.masked_fill(~allowed, -math.inf).softmax(-1).nan_to_num(0)


def _keys(case: Case, rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows[:, None], torch.arange(case.T, device=rows.device)[None]


def _window(case: WindowCase, rows: Tensor) -> Tensor:
    i, j = _keys(case, rows)
    return (j <= i) & ((i - j < case.window) | (j < case.memory))


def _given(case: SelectedCase, indices: Tensor, rows: Tensor) -> Tensor:
    i, j = _keys(case, rows)
    return (j <= i) & _members(indices, math.ceil(case.T / case.block))[:, (j // case.block)[0]]


def _members(indices: Tensor, count: int) -> Tensor:
    """Which of `count` blocks each row's list names; -1 names none."""
    listed = torch.zeros(len(indices), count + 1, dtype=torch.bool, device=indices.device)
    return listed.scatter_(1, torch.where(indices < 0, count, indices), True)[:, :count]


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Members of the top k of eligible (finite) scores, and whether no near tie decides the last."""
    ranked, order = torch.nn.functional.pad(scores, (0, k + 1), value=-math.inf).topk(k + 1, -1)
    chosen = _members(order[:, :k].masked_fill(ranked[:, :k] == -math.inf, -1), scores.shape[-1])
    return chosen, ~(ranked[:, k - 1] - ranked[:, k] < TIE * ranked[:, 0].abs().clamp_min(TIE))


def _moba(case: MobaCase, x: Inputs, rows: Tensor) -> tuple[Tensor, Tensor]:
    i, j = _keys(case, rows)
    means = torch.stack([block.mean(0) for block in torch.split(x["k"], case.block)])
    own = torch.nn.functional.one_hot(rows // case.block, len(means)).bool()
    past = torch.arange(len(means), device=rows.device) < (rows // case.block)[:, None]
    gates = (x["q"][rows] @ means.T).masked_fill(~past, -math.inf)
    chosen, decided = _best(gates, case.k - 1)
    return (j <= i) & (chosen | own)[:, (j // case.block)[0]], decided


def _hsa(case: HsaCase, x: Inputs, scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax inside each chosen chunk, chunks summed with stick-breaking weights, newest first."""
    chunks = case.T // case.chunk
    ends = (torch.arange(chunks, device=rows.device) + 1) * case.chunk
    routed = x["r"][rows] @ x["l"].T / math.sqrt(case.retrieval)
    chosen, decided = _best(routed.masked_fill(ends > rows[:, None], -math.inf), case.k)
    kept = torch.where(chosen, routed.sigmoid(), 0.0)
    newer = (1 - kept).flip(1).cumprod(1).roll(1, 1)
    newer[:, 0] = 1
    weights = kept * newer.flip(1)
    inside = torch.unflatten(scores[:, : chunks * case.chunk], 1, (chunks, case.chunk)).softmax(-1)
    return (weights[..., None] * inside).flatten(1) @ x["v"][: chunks * case.chunk], decided
