"""Plain fp64 truth of cases of matrix states, token by token, all heads at once."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsec.benchmarks.cases import Inputs
from sparsec.benchmarks.cases_scan import LevelsCase, ProductCase, ScanCase
from sparsec.benchmarks.spans import walked

_SPAN, _LEAST_SPAN = 128, 16
"""Tokens between states that a backward keeps: of one row, and at least of many, as a span records all their states."""


def scan_output(case: ScanCase, x: Inputs) -> Tensor:
    """The output ``[B,T,H,D]`` of fp64 inputs; differentiable in memory that grows slowly with T."""
    levels = case.levels if isinstance(case, LevelsCase) else 1
    state = torch.zeros(case.B, case.HKV, case.D, case.D * levels, dtype=torch.float64, device=case.device)
    x = x | {"carried": _carried(case, levels)} if isinstance(case, LevelsCase) else x
    names = sorted(x)

    def walk(state: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
        some = dict(zip(names, given, strict=True))
        return _climb(case, state, some) if isinstance(case, LevelsCase) else _walk(case, state, some)

    return walked(walk, (state,), [x[name] for name in names], max(_LEAST_SPAN, _SPAN // case.B), 1)[-1]


def _walk(case: ScanCase, state: Tensor, x: Inputs) -> tuple[Tensor, Tensor]:
    found = []
    for t in range(x["q"].shape[1]):
        now = {name: tensor[:, t] for name, tensor in x.items()}
        for step in _steps(case, now):
            state = _write(case, state, step)
        seen = state.repeat_interleave(case.group, 1)
        found.append(case.scale * torch.einsum("bhde,bhd->bhe", seen, now["q"]))
    return state, torch.stack(found, 1)


def _climb(case: LevelsCase, state: Tensor, x: Inputs) -> tuple[Tensor, Tensor]:
    """Levels side by side as columns, of which tokens write the first; after each the full ones move up."""
    found, nothing = [], x["v"].new_zeros(*x["v"].shape[:1], case.HKV, case.D * (case.levels - 1))
    for t in range(x["q"].shape[1]):
        now = {name: tensor[:, t] for name, tensor in x.items()}
        state = _write(case, state, now | {"v": torch.cat([now["v"], nothing], -1)})
        levels = state.unflatten(-1, (case.levels, case.D))
        seen = torch.einsum("bhdle,bhd->bhle", levels, now["q"])
        found.append(case.scale * (now["lam"][..., None] * seen).sum(-2))
        state = torch.einsum("bhdle,blm->bhdme", levels, now["carried"]).flatten(-2)
    return state, torch.stack(found, 1)


def _carried(case: LevelsCase, levels: int) -> Tensor:
    """Where each level goes after each token ``[B,T,levels,levels]``, as ones.

    Levels 0 to m become level m + 1, m the trailing zeros of t + 1; nothing is above the highest.
    """
    ends = torch.arange(1, case.T + 1, device=case.device)
    full = (ends & -ends).double().log2().round().long()[:, None] + 1
    level = torch.arange(levels, device=case.device).expand(case.T, levels)
    target = torch.where((level < full) & (full < levels), full, level)
    return torch.nn.functional.one_hot(target, levels).double().expand(case.B, -1, -1, -1)


def _steps(case: ScanCase, now: Inputs) -> list[Inputs]:
    """What each rule of a token brings; the first one its decay."""
    if not isinstance(case, ProductCase):
        return [now]
    parts = {name: now[name].chunk(case.steps, 1) for name in ("k", "v", "beta")}
    found = [{name: part[step] for name, part in parts.items()} for step in range(case.steps)]
    return [found[0] | {"g": now["g"]}, *found[1:]]


def _write(case: ScanCase, state: Tensor, now: Inputs) -> Tensor:
    """The state after one token."""
    before, k, value = state, now["k"], now["v"]
    if "g" in now:
        gate = now["g"].exp()
        state = state * (gate[..., None, None] if gate.dim() == 2 else gate[..., None])
    if case.delta:
        value = now["beta"][..., None] * (value - torch.einsum("bhde,bhd->bhe", state, k))
    if "a" in now:
        state = state + now["b"][..., None] * torch.einsum("bhde,bhd->bhe", before, now["a"])[..., None, :]
    return state + k[..., None] * value[..., None, :]


def scan_gradients(case: ScanCase, inputs: Inputs, rows: Tensor, grad: Tensor) -> Inputs:
    """fp64 gradients of what the case learns, through the outputs of these rows only."""
    leaves = {name: x.double().requires_grad_(name in case.learned) for name, x in inputs.items()}
    with torch.enable_grad():
        out = scan_output(case, leaves)
        found = torch.autograd.grad(out[:, rows], [leaves[n] for n in case.learned], grad[:, rows].double())
    return dict(zip(case.learned, found, strict=True))
