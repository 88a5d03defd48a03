"""A level of parts in plain torch: every part's tokens one after another, the parts side by side."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsec.benchmarks.spans import walked

_SPAN = 64
"""Tokens between states that a backward keeps."""

CLEAR = 2.0**-6
"""How far from its bound what is clipped lies at least, so that no rounding decides whether a gradient passes."""
_TURNS = 8


def level_of(parts: int, chosen: Tensor, x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What each token is answered, what surprised its part, and the part's mass: ``[T,H,D]`` each."""
    runs = [(chosen == n).nonzero()[:, 0] for n in range(parts)]
    longest = max(len(run) for run in runs)
    at = torch.stack([torch.nn.functional.pad(run, (0, longest - len(run)), value=-1) for run in runs])
    names = ("q", "k", "v", "rate", "g")
    given = [x[name][at.clamp(min=0)] for name in names]
    heads, dim = x["k"].shape[1:]
    zeros = x["k"].new_zeros(parts, heads, dim)
    *_, found = walked(_walk, (zeros[..., None].repeat(1, 1, 1, dim), zeros), given, _SPAN, 2)
    order = torch.empty_like(chosen)
    order[torch.cat(runs)] = torch.cat(
        [n * longest + torch.arange(len(r), device=at.device) for n, r in enumerate(runs)]
    )
    o, surprise, z = found
    return tuple(t.flatten(0, 1)[order] for t in (o, surprise, z))


def _walk(m: Tensor, z: Tensor, q: Tensor, k: Tensor, v: Tensor, rate: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    """Some tokens of every part; past the end of a run whatever is written is read by nobody."""
    found = []
    for t in range(q.shape[1]):
        keep, b = g[:, t].exp()[..., None], rate[:, t][..., None]
        m, z = keep[..., None] * m, keep * z + b * k[:, t]
        surprise = v[:, t] - torch.einsum("phde,phd->phe", m, k[:, t])
        m = m + (b * k[:, t])[..., None] * surprise[..., None, :]
        found.append(torch.stack([torch.einsum("phde,phd->phe", m, q[:, t]), surprise, z]))
    return m, z, torch.stack(found, 2)


def left_of(rate: Tensor, k: Tensor, surprise: Tensor) -> Tensor:
    """What a delta rule with rates ``[T,H]`` leaves of its surprise ``[T,H,D]`` after the write."""
    return (1 - rate * k.square().sum(-1))[..., None] * surprise


def cleared(x: Mapping[str, Tensor], clip: float) -> Tensor:
    """Values ``[B,T,H,D]`` of which the first level, one state, leaves nothing within ``CLEAR`` of the clip.

    A gradient jumps where an element passes its clip: half-precision kernels and the truth then differ by whole
    elements and not by rounding. Raises ValueError where moving the few that are too near does not end.
    """
    v = x["v"]
    for _ in range(_TURNS):
        moved = torch.stack([_moved({n: x[n][b] for n in x} | {"v": v[b]}, clip) for b in range(len(v))])
        if not bool(moved.any()):
            return v
        v = (v.double() + moved).to(v.dtype)
    raise ValueError(f"values that leave something within {CLEAR} of {clip} after {_TURNS} turns; draw others")


def _moved(x: Mapping[str, Tensor], clip: float) -> Tensor:
    """What to add to each value of a document, most of it 0."""
    given = {name: t.double() for name, t in x.items()}
    rate, k = given["rate"], given["k"]
    with torch.no_grad():
        one = torch.zeros(len(k), dtype=torch.int64, device=k.device)
        left = left_of(rate, k, level_of(1, one, given)[1])
    near, away = (left.abs() - clip).abs() < CLEAR, torch.where(left.abs() > clip, left.sign(), -left.sign())
    return torch.where(near, 2 * CLEAR * away / left_of(rate, k, torch.ones_like(left)), 0.0)
