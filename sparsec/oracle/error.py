"""How wrong is a result: error measures, the bounds they are held to, and a verdict in a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Quantity = Literal["o", "grad"]

TILE_ROWS = 64
FAINT = 1e-3

# dtype -> quantity -> (bound over the tensor, bound over its worst tile). "o" serves o and dv, "grad" everything else.
BOUNDS: dict[str, dict[Quantity, tuple[float, float]]] = {
    "bfloat16": {"o": (3e-3, 4e-3), "grad": (8e-3, 1.2e-2)},
    "float16": {"o": (3e-3 / 8, 4e-3 / 8), "grad": (8e-3 / 8, 1.2e-2 / 8)},
    "float32": {"o": (1e-5, 1e-5), "grad": (1e-5, 1e-5)},
    "float64": {"o": (1e-12, 1e-12), "grad": (1e-12, 1e-12)},
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a result is right, and by how much.

    Attributes:
        tensor: root-mean-square error over root-mean-square truth of the whole tensor.
        tile: the same of the worst tile; a faint tile is measured by the truth of the whole tensor.
        sentence: the finding with its numbers.
    """

    ok: bool
    tensor: float
    tile: float
    sentence: str

    def __bool__(self) -> bool:
        return self.ok


def check(actual: Tensor, truth: Tensor, dtype: torch.dtype | str, kind: Quantity = "o", axis: int = 1) -> Verdict:
    """Holds a result to the bounds of a dtype; both tensors have tokens on ``axis`` and features on the last one.

    A tile is 64 consecutive tokens of one batch entry and head. A tile whose truth is below a thousandth of the
    tensor's is held to the tensor's absolute error. Where the truth is not finite the result must be the same. Raises
    ValueError for a dtype or kind without bounds and where the shapes differ.
    """
    if actual.shape != truth.shape:
        shapes = f"{tuple(actual.shape)}, the truth {tuple(truth.shape)}"
        raise ValueError(f"the result has shape {shapes}: compare like with like")
    name = str(dtype).removeprefix("torch.")
    if kind not in BOUNDS.get(name, {}):
        raise ValueError(f"no bounds for {name} {kind}: dtypes are {', '.join(BOUNDS)}, kinds are o and grad")
    whole_bound, tile_bound = BOUNDS[name][kind]
    actual, truth = actual.detach().double(), truth.detach().double()
    strange = _disagreement(actual, truth)
    if strange:
        return Verdict(False, float("inf"), float("inf"), strange)
    finite = truth.isfinite()
    error = torch.where(finite, actual - truth, 0.0)
    truth = torch.where(finite, truth, 0.0)
    whole = ratio(error, truth)
    tile, excess = _worst_tile(error, truth, axis, whole_bound, tile_bound)
    ok = whole <= whole_bound and excess <= 1
    sentence = (
        f"{'within' if ok else 'outside'} the bounds of {name} {kind}: {whole:.2e} over the tensor (at most "
        f"{whole_bound:.1e}), {tile:.2e} in the worst tile of {TILE_ROWS} rows (at most {tile_bound:.1e})"
    )
    return Verdict(ok, whole, tile, sentence)


def ratio(error: Tensor, truth: Tensor) -> float:
    """Root-mean-square error over root-mean-square truth; 0 where both vanish, infinite where only the truth does."""
    return float(_safe_ratio(_rms(error.reshape(1, -1)), _rms(truth.reshape(1, -1))))


def _worst_tile(error: Tensor, truth: Tensor, axis: int, whole_bound: float, tile_bound: float) -> tuple[float, float]:
    """The worst tile's ratio, and by what factor the tile nearest to its bound exceeds it."""
    if truth.numel() == 0:
        return 0.0, 0.0
    whole = _rms(truth.reshape(1, -1))
    wrong, right = _rms(_tiles(error, axis)), _rms(_tiles(truth, axis))
    faint = right < FAINT * whole
    measured = _safe_ratio(wrong, torch.where(faint, whole, right))
    excess = measured / torch.where(faint, whole_bound, tile_bound)
    return float(measured.max()), float(excess.max())


def _tiles(x: Tensor, axis: int) -> Tensor:
    """One row per tile of 64 tokens, padded with NaN, which `_rms` leaves out."""
    x = x.reshape(-1, 1) if x.ndim < 2 else x
    rows = x.movedim(axis if x.ndim > 2 else 0, 0)
    rows = rows.unsqueeze(1) if rows.ndim == 2 else rows
    spare = -rows.shape[0] % TILE_ROWS
    padded = torch.cat([rows, rows.new_full((spare, *rows.shape[1:]), torch.nan)])
    tiles = padded.reshape(-1, TILE_ROWS, rows[0, ..., 0].numel(), rows.shape[-1])
    return tiles.transpose(1, 2).reshape(-1, TILE_ROWS * rows.shape[-1])


def _rms(rows: Tensor) -> Tensor:
    return torch.nanmean(rows.square(), dim=-1).sqrt() if rows.shape[-1] else rows.new_zeros(rows.shape[0])


def _safe_ratio(error: Tensor, truth: Tensor) -> Tensor:
    return torch.where(error == 0, 0.0, error / truth)


def _disagreement(actual: Tensor, truth: Tensor) -> str | None:
    """What is wrong about the elements that are not finite."""
    same = (actual == truth) | (actual.isnan() & truth.isnan())
    wrong = ~same & ~(actual.isfinite() & truth.isfinite())
    if not bool(wrong.any()):
        return None
    at = tuple(int(i) for i in wrong.nonzero()[0])
    count = int(wrong.sum())
    first = f"first at {at}, {float(actual[at])} for {float(truth[at])}"
    return f"{count} elements are not finite as they should be: {first}"
