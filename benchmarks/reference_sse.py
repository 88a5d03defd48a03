"""Plain fp64 truth of sparse state expansion: every part's tokens one after another, all parts side by side."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsec.benchmarks.cases import Inputs
from sparsec.benchmarks.cases_scan import GdnCase, GlaCase, ScanCase
from sparsec.benchmarks.cases_sse import SseCase
from sparsec.benchmarks.reference_scan import scan_output


def sse_output(case: SseCase, x: Inputs) -> Tensor:
    """The output ``[B,T,H,D]`` of fp64 inputs."""
    share = torch.softmax(x["x"][:, :, 0] @ x["w"][:, 0].T, -1)
    e, chosen = share.max(-1)
    found = [
        _routed(case, {name: t[b] for name, t in x.items() if name != "w"}, e[b], chosen[b]) for b in range(case.B)
    ]
    return scan_output(_plain(case, case.B, case.T), _role(x, "1")) + torch.stack(found)


def _plain(case: SseCase, batch: int, length: int) -> ScanCase:
    kind = GdnCase if case.delta else GlaCase
    return kind(case.name, batch, case.H, case.H, length, case.D, device=case.device, dtype=case.dtype)


def _role(x: Inputs, ending: str) -> Inputs:
    """What one bank is written and asked."""
    names = ("q", "k", "g", "beta")
    return {n: x[f"{n}{ending}"] for n in names if f"{n}{ending}" in x} | {"v": x["v"]}


def _routed(case: SseCase, x: Inputs, e: Tensor, chosen: Tensor) -> Tensor:
    """What the parts answer ``[T,H,D]``: runs of tokens ``[parts,longest]``, past their ends nothing is written."""
    runs = [(chosen == n).nonzero()[:, 0] for n in range(case.parts)]
    longest = max(len(run) for run in runs)
    at = torch.stack([torch.nn.functional.pad(run, (0, longest - len(run)), value=-1) for run in runs])
    there = (at >= 0).double()
    role = {name: t[at.clamp(min=0)] for name, t in _role(x, "2").items()}
    share = (e[at.clamp(min=0)] * there)[..., None]
    if case.delta:
        role["beta"] = role["beta"] * share
    else:
        role["k"] = role["k"] * share[..., None]
    role["g"] = role["g"] * (there[..., None] if case.delta else there[..., None, None])
    out = scan_output(_plain(case, case.parts, longest), role) * share[..., None]
    order = torch.empty_like(chosen)
    order[torch.cat(runs)] = torch.cat(
        [n * longest + torch.arange(len(r), device=at.device) for n, r in enumerate(runs)]
    )
    return out.flatten(0, 1)[order]


def sse_gradients(case: SseCase, inputs: Inputs, rows: Tensor, grad: Tensor) -> Inputs:
    """fp64 gradients of what the case learns, through the outputs of these rows only."""
    leaves = {name: x.double().requires_grad_(name in case.learned) for name, x in inputs.items()}
    with torch.enable_grad():
        out = sse_output(case, leaves)
        found = torch.autograd.grad(out[:, rows], [leaves[n] for n in case.learned], grad[:, rows].double())
    return dict(zip(case.learned, found, strict=True))
