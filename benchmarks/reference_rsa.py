"""Plain fp64 truth of recursive sparse attention: level by level, every part's tokens one after another."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sparsec.benchmarks.cases import Inputs
from sparsec.benchmarks.cases_rsa import RsaCase

_SPAN = 64
"""Tokens between states that a backward keeps."""


def rsa_output(case: RsaCase, x: Inputs) -> Tensor:
    """The output ``[B,T,H,D]`` of fp64 inputs."""
    shared = ("w_2", "w_3")
    return torch.stack([_document(case, {n: t if n in shared else t[b] for n, t in x.items()}) for b in range(case.B)])


def _document(case: RsaCase, x: Inputs) -> Tensor:
    """One batch entry: levels read and left, then the softmax over what their masses say."""
    v, scores, answers = x["v"], [], []
    for level, parts in enumerate(case.parts, 1):
        e, chosen = x["v"].new_ones(len(v)), torch.zeros(len(v), dtype=torch.int64, device=v.device)
        if parts > 1:
            e, chosen = torch.softmax(x["x"][:, 0] @ x[f"w_{level}"][:, 0].T, -1).max(-1)
        rate = x[f"beta_{level}"] * e[:, None]
        o, surprise, z = _level(parts, chosen, {**x, "v": v, "rate": rate, "g": x[f"g_{level}"]})
        answers.append(o)
        scores.append((x["q"] * torch.nn.functional.normalize(z, dim=-1, eps=0.0)).sum(-1) * case.D**0.5)
        if level < len(case.parts):
            left = (1 - rate * x["k"].square().sum(-1))[..., None] * surprise
            v = x[f"c_{level}"].sigmoid()[..., None] * left.clamp(-case.clip, case.clip)
    share = torch.softmax(torch.stack(scores), 0)
    return (share[..., None] * torch.stack(answers)).sum(0)


def _level(parts: int, chosen: Tensor, x: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """What each token is answered, what surprised its part, and the part's mass: ``[T,H,D]`` each."""
    runs = [(chosen == n).nonzero()[:, 0] for n in range(parts)]
    longest = max(len(run) for run in runs)
    at = torch.stack([torch.nn.functional.pad(run, (0, longest - len(run)), value=-1) for run in runs])
    names = ("q", "k", "v", "rate", "g")
    given = [x[name][at.clamp(min=0)] for name in names]
    heads, dim = x["k"].shape[1:]
    state = (x["k"].new_zeros(parts, heads, dim, dim), x["k"].new_zeros(parts, heads, dim))
    found = []
    for first in range(0, longest, _SPAN):
        some = [t[:, first : first + _SPAN] for t in given]
        *state, out = checkpoint(_walk, *state, *some, use_reentrant=False)
        found.append(out)
    order = torch.empty_like(chosen)
    order[torch.cat(runs)] = torch.cat(
        [n * longest + torch.arange(len(r), device=at.device) for n, r in enumerate(runs)]
    )
    o, surprise, z = torch.cat(found, 2)
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


def rsa_gradients(case: RsaCase, inputs: Inputs, rows: Tensor, grad: Tensor) -> Inputs:
    """fp64 gradients of what the case learns, through the outputs of these rows only."""
    leaves = {name: x.double().requires_grad_(name in case.learned) for name, x in inputs.items()}
    with torch.enable_grad():
        out = rsa_output(case, leaves)
        found = torch.autograd.grad(out[:, rows], [leaves[n] for n in case.learned], grad[:, rows].double())
    return dict(zip(case.learned, found, strict=True))
