"""Plain fp64 truth of recursive sparse attention, level by level."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsec.benchmarks.cases import Inputs
from sparsec.benchmarks.cases_rsa import RsaCase
from sparsec.benchmarks.levels import left_of, level_of


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
        o, surprise, z = level_of(parts, chosen, {**x, "v": v, "rate": rate, "g": x[f"g_{level}"]})
        answers.append(o)
        scores.append((x["q"] * torch.nn.functional.normalize(z, dim=-1, eps=0.0)).sum(-1) * case.D**0.5)
        if level < len(case.parts):
            left = left_of(rate, x["k"], surprise)
            v = x[f"c_{level}"].sigmoid()[..., None] * left.clamp(-case.clip, case.clip)
    share = torch.softmax(torch.stack(scores), 0)
    return (share[..., None] * torch.stack(answers)).sum(0)


def rsa_gradients(case: RsaCase, inputs: Inputs, rows: Tensor, grad: Tensor) -> Inputs:
    """fp64 gradients of what the case learns, through the outputs of these rows only."""
    leaves = {name: x.double().requires_grad_(name in case.learned) for name, x in inputs.items()}
    with torch.enable_grad():
        out = rsa_output(case, leaves)
        found = torch.autograd.grad(out[:, rows], [leaves[n] for n in case.learned], grad[:, rows].double())
    return dict(zip(case.learned, found, strict=True))
