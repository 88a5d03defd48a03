"""Gradients of merges and sums of terms, in the tile interpreter against autograd in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparsec.lower.registry import default, lower_kernel
from sparsec.plan.grad_specs import CombineGrad, Total
from sparsec.plan.specs import Combine
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.functions import sigmoid
from sparsec.tile.schedule import Schedule

Run = Callable[..., None]
PARAMS = {"B": 2, "TQ": 19, "TK": 19, "q_offset": 0, "M": 37}
HEADS, DIM = 3, 48
TILE = Schedule(rows=16)
GATE: Expr = var("x0", "float")


def merge(fn: str, count: int, gates: int = 0, gate_fn: Expr | None = None) -> CombineGrad:
    """All gradients of one merge."""
    names = [f"o{n}" for n in range(count)], [f"g{n}" for n in range(gates)]
    lses = [f"l{n}" for n in range(count)] if fn == "lse" else []
    forward = Combine(
        "merge", fn, tuple(names[0]), tuple(names[1]), tuple(lses), "out", "lse" if lses else None, HEADS, DIM,
        "float32", gate_fn,
    )  # fmt: skip
    branches, gating, ends = (tuple(f"grad_{n}" for n in group) for group in (*names, lses))
    out, lse, lse_grad = ("out", "lse", "lse_grad") if lses else (None, None, None)
    return CombineGrad(
        "back", forward, "grad", lse_grad, branches, gating, ends, "float32", "float32", out, lse
    )  # fmt: skip


MERGES: dict[str, CombineGrad] = {
    "sum": merge("sum", 2),
    "gated": merge("gated", 3, 3, sigmoid(GATE)),
    "plainly gated": merge("gated", 2, 2),
    "convex": merge("convex", 2, 1, sigmoid(GATE * 2.0)),
    "lse": merge("lse", 3),
}


def draw(spec: CombineGrad) -> dict[str, Tensor]:
    """Branches, gates and log-sum-exps in fp64; a row that is empty in one branch, and one that is empty in all."""
    g, forward = torch.Generator().manual_seed(0), spec.forward
    rows = (2, 19, HEADS)
    made = {n: torch.randn(*rows, DIM, generator=g, dtype=torch.float64) for n in (*forward.branches, "grad")}
    made |= {
        n: torch.randn(rows, generator=g, dtype=torch.float64) for n in (*forward.gates, *forward.lses, "lse_grad")
    }
    for name in forward.lses:
        made[name][0, 3] = -math.inf
        made[forward.branches[forward.lses.index(name)]][0, 3] = 0.0
    if forward.lses:
        made["l0"][1, 5] = -math.inf
        made["o0"][1, 5] = 0.0
    return made


def merged(spec: CombineGrad, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The merge by its definition; its log-sum-exp is 0 where it has none."""
    forward = spec.forward
    branches, nothing = [x[n] for n in forward.branches], torch.zeros(2, 19, HEADS, dtype=torch.float64)
    gates = [
        evaluate(GATE if forward.gate_fn is None else forward.gate_fn, {"x0": x[n]})[..., None] for n in forward.gates
    ]
    if forward.fn == "sum":
        return sum(branches, torch.zeros(())), nothing
    if forward.fn == "gated":
        return sum((g * o for g, o in zip(gates, branches, strict=True)), torch.zeros(())), nothing
    if forward.fn == "convex":
        return gates[0] * branches[0] + (1 - gates[0]) * branches[1], nothing
    lses = torch.stack([x[n] for n in forward.lses], -1)
    empty = (lses == -math.inf).all(-1, keepdim=True)
    safe = torch.where(empty, 0.0, lses)
    shares = torch.where(empty, 0.0, torch.softmax(safe, -1))
    out = sum((shares[..., n, None] * o for n, o in enumerate(branches)), torch.zeros(()))
    return out, torch.where(empty[..., 0], -math.inf, torch.logsumexp(safe, -1))


def truth(spec: CombineGrad, x: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the merge wrote, and all gradients."""
    forward = spec.forward
    leaves = {n: x[n].clone().requires_grad_() for n in (*forward.branches, *forward.gates, *forward.lses)}
    out, lse = merged(spec, {**x, **leaves})
    loss = (out * x["grad"]).sum()
    if spec.lse_grad is not None:
        loss = loss + torch.where(lse == -math.inf, 0.0, lse * x["lse_grad"]).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    found = {f"grad_{n}": torch.zeros_like(x[n]) if g is None else g for n, g in zip(leaves, grads, strict=True)}
    return {"out": out.detach(), "lse": lse.detach()}, found


@pytest.mark.parametrize("name", MERGES)
def test_merges(run: Run, name: str) -> None:
    spec = MERGES[name]
    x = draw(spec)
    wrote, want = truth(spec, x)
    poisoned = {n: torch.full_like(t, torch.nan) for n, t in want.items()}
    given = {**x, **wrote, **poisoned}
    run(lower_kernel(spec, TILE), given, PARAMS, mode="exact")
    for gradient, value in want.items():
        assert torch.allclose(given[gradient], value, rtol=1e-9, atol=1e-9), gradient


@pytest.mark.parametrize("name", ["gated", "plainly gated", "convex", "lse"])
def test_rowdots_of_branches(run: Run, name: str) -> None:
    spec = MERGES[name]
    spec = replace(spec, deltas=("delta", *(None for _ in spec.branch_grads[2:]), "last"), branch_grad_dtype="bfloat16")
    x = draw(spec)
    wrote, want = truth(spec, x)
    made = {n: torch.full_like(want[n], torch.nan).float() for n in want}
    made |= {n: torch.full_like(x["o0"], torch.nan, dtype=torch.bfloat16) for n in spec.branch_grads if n}
    made |= {n: torch.full(x["o0"].shape[:3], torch.nan) for n in ("delta", "last")}
    run(lower_kernel(spec, TILE), {n: t.float() for n, t in {**x, **wrote}.items()} | made, PARAMS)
    for delta, number in (("delta", 0), ("last", -1)):
        right = made[str(spec.branch_grads[number])].double() * x[spec.forward.branches[number]]
        assert torch.allclose(made[delta].double(), right.sum(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gated", "lse"])
def test_only_what_is_asked_for(run: Run, name: str) -> None:
    spec = MERGES[name]
    some = replace(
        spec, branch_grads=(None, *spec.branch_grads[1:]), gate_grads=(*spec.gate_grads[:-1], None),
        lse_grads=(*spec.lse_grads[:-1], None), lse_grad=None,
    ) if name == "gated" else replace(spec, branch_grads=(None,) * 3, lse_grad=None)  # fmt: skip
    x = draw(spec)
    wrote, want = truth(some, x)
    asked = [n for group in (some.branch_grads, some.gate_grads, some.lse_grads) for n in group if n is not None]
    given = {**x, **wrote, **{n: torch.full_like(want[n], torch.nan) for n in asked}}
    run(lower_kernel(some, TILE), given, PARAMS, mode="exact")
    assert all(torch.allclose(given[n], want[n], rtol=1e-9, atol=1e-9) for n in asked)


@pytest.mark.parametrize("name", MERGES)
def test_rounding(run: Run, name: str) -> None:
    spec = MERGES[name]
    forward = replace(spec.forward, dtype="bfloat16")
    spec = replace(spec, forward=forward, grad_dtype="bfloat16", branch_grad_dtype="bfloat16")
    x = draw(spec)
    halves = {n: t.bfloat16() for n, t in x.items() if n in ("grad", *forward.gates)}
    stored = {n: t.float() for n, t in x.items()} | halves
    wrote, want = truth(spec, {n: t.double() for n, t in stored.items()})
    single = {n: t.float() for n, t in wrote.items()} | {"out": wrote["out"].bfloat16()}
    dtypes = {n: torch.float32 if n in spec.lse_grads else torch.bfloat16 for n in want}
    given = {**stored, **single, **{n: torch.full_like(t, torch.nan, dtype=dtypes[n]) for n, t in want.items()}}
    run(lower_kernel(spec, default(spec, "triton:sm_90")), given, PARAMS)
    for gradient, value in want.items():
        error = (given[gradient].double() - value).norm() / value.norm()
        assert float(error) <= 8e-3, gradient


@pytest.mark.parametrize("batched", [True, False])
def test_sums_of_terms(run: Run, batched: bool) -> None:
    shape = (2, 37, HEADS, DIM) if batched else (37, HEADS, DIM)
    dtypes = {"a": "bfloat16", "b": "float32", "c": "bfloat16"}
    spec = Total("total", tuple(dtypes), "out", HEADS, DIM, "M", tuple(dtypes.values()), "bfloat16", batched)
    given = {n: torch.randn(shape).to(getattr(torch, d)) for n, d in dtypes.items()}
    given["out"] = torch.full(shape, torch.nan, dtype=torch.bfloat16)
    run(lower_kernel(spec, TILE), given, PARAMS)
    want = (given["a"].float() + given["b"] + given["c"].float()).bfloat16()
    assert torch.equal(given["out"], want)
