"""What every exported file carries beside its kernels: checks of the inputs, and the check of its own results.

The text of these functions is copied into exported files, so they use nothing but torch and one another.
"""

from __future__ import annotations

import torch
from torch import Tensor


def expect(name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    """Raise ValueError unless a tensor has this shape, dtype and device, a last stride of 1, and memory its signs."""
    found = f"`{name}` is {tuple(x.shape)} {x.dtype} on {x.device}, strides {x.stride()}"
    if tuple(x.shape) != shape or x.dtype != dtype or x.device.type != device:
        raise ValueError(f"{found}: it must be {shape} {dtype} on {device}")
    if x.dim() and x.numel() and x.shape[-1] > 1 and x.stride(-1) != 1:
        raise ValueError(f"{found}: the last stride must be 1; use .contiguous()")
    if x.is_neg():
        raise ValueError(f"`{name}` is a view that negates, and kernels read memory as it is; use .resolve_neg()")


def expect_indices(name: str, x: Tensor, units: int, counts: Tensor | None = None) -> None:
    """Raise ValueError unless every index is -1 or one of the units that exist, each once in a list, and counts fit."""
    if x.numel() and (int(x.min()) < -1 or int(x.max()) >= units):
        raise ValueError(f"`{name}` holds {int(x.min())} … {int(x.max())}: there are {units} units; -1 stands for none")
    if counts is not None and counts.numel() and (int(counts.min()) < 0 or int(counts.max()) > x.shape[-1]):
        raise ValueError(f"the counts of `{name}` are {int(counts.min())} … {int(counts.max())} of {x.shape[-1]} slots")
    if counts is not None:
        x = torch.where(torch.arange(x.shape[-1], device=x.device) < counts[..., None], x, -1)
    ordered = x.sort(-1).values
    if bool(((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any()):
        raise ValueError(f"`{name}` names a unit twice in a list, and a list is a set; -1 stands for none")


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Numbers between -1.7 and 1.7 that depend on seed and place only: the same on every machine, fp32."""
    count = torch.Size(shape).numel()
    x = torch.arange(count, dtype=torch.int64) + 7919 * (seed + 1)
    for factor in (2654435761, 2246822519, 3266489917):
        x = ((x ^ (x >> 15)) * factor) % 4294967296
    return ((x.double() / 4294967296 - 0.5) * 3.4).float().reshape(shape)


def fitting(x: Tensor, kind: str) -> Tensor:
    """Numbers that an input may have: rates between 0 and 1, log-decays, keys of length 1, features."""
    if kind == "key":
        return torch.nn.functional.normalize(x, dim=-1)
    return {"rate": x.sigmoid(), "decay": -x.abs(), "feature": x.abs()}[kind]


def digest(x: Tensor, rows: list[int]) -> Tensor:
    """Some rows of a result as one number per head: its columns under fixed random weights, fp64.

    States and single numbers, which have no rows of queries, count whole.

    The log-sum-exp of a query that reads nothing is -inf; it counts as -8, so that sums with it say something.
    """
    whole = x.dim() < 2 or max(rows) >= x.shape[1]
    chosen = (x.reshape(1, -1) if x.dim() < 2 else x if whole else x[:, rows]).double().cpu()
    chosen = torch.where(chosen == -float("inf"), -8.0, chosen)
    return (chosen * noise(tuple(chosen.shape[-1:]), 99).double()).sum(-1).flatten()


def distance(found: Tensor, truth: Tensor) -> float:
    """Root-mean-square difference over root-mean-square truth; infinite where one is finite and the other is not."""
    alike = (found == truth) | (found.isnan() & truth.isnan())
    error = torch.where(alike, 0.0, found - truth).square().mean().sqrt()
    size = torch.where(torch.isfinite(truth), truth, 0.0).square().mean().sqrt().clamp(min=1e-30)
    return float(error / size) if bool(torch.isfinite(error)) else float("inf")
