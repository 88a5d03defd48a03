"""Cases of the backward of tiled attention: inputs, dense gradients in fp64, and a run of all its kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sparsec.lower.lowered import Lowered
from sparsec.lower.registry import lower_kernel
from sparsec.plan.grad_specs import RowDot, TiledGradCapture, TiledGradKV, TiledGradQ
from sparsec.plan.specs import BlockList, Piece, TiledAttention
from sparsec.scalar.evaluate import evaluate
from sparsec.tile.schedule import Schedule

Tensors = dict[str, Tensor]
Run = Callable[[Lowered, Tensors, Mapping[str, int]], None]
Change = Callable[[Lowered], Lowered]


@dataclass(frozen=True, slots=True)
class TiledCase:
    """A spec, its lengths, and the tensors that it captures.

    Attributes:
        lse_grad: whether the log-sum-exp has a gradient too.
        grad_dtype: of the output's gradient; None: as the output.
        given: inputs that are not to be drawn.
    """

    spec: TiledAttention
    params: Mapping[str, int]
    captures: Mapping[str, Tensor] = field(default_factory=dict)
    lse_grad: bool = False
    grad_dtype: str | None = None
    given: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def out_dtype(self) -> str:
        """The dtype of output and, unless said otherwise, its gradient."""
        return self.spec.out_dtype or self.spec.dtype

    def draw(self, seed: int = 0) -> Tensors:
        """Inputs and the gradients of the outputs, in their dtypes."""
        g, s, n = torch.Generator().manual_seed(seed), self.spec, self.params
        rows, dtype = (n["B"], n["TQ"], s.heads), getattr(torch, s.dtype)
        made = {s.q: torch.randn(*rows, s.head_dim, generator=g).to(dtype)}
        for p in s.pieces:
            lead = ((n["B"],) if p.batched else ()) + (n[p.length], s.kv_heads)
            made[p.k] = torch.randn(*lead, s.head_dim, generator=g).to(dtype)
            made[p.v] = torch.randn(*lead, s.value_dim, generator=g).to(dtype)
        if s.sink not in (None, "zero"):
            made[str(s.sink)] = torch.randn(s.heads, generator=g)
        grad_dtype = getattr(torch, self.grad_dtype or self.out_dtype)
        made["grad"] = torch.randn(*rows, s.value_dim, generator=g).to(grad_dtype)
        if self.lse_grad:
            made["lse_grad"] = torch.randn(*rows, generator=g)
        return {**made, **self.captures, **self.given}


def truth(case: TiledCase, given: Tensors) -> Tensors:
    """Output, log-sum-exp and the gradients ``grad_<input>``, dense and in fp64."""
    x = {name: t.double() if t.is_floating_point() else t for name, t in given.items()}
    asked = {name: t.requires_grad_() for name, t in x.items() if t.is_floating_point() and "grad" not in name}
    logits, values = zip(*(_piece(case.spec, p, x, case.params) for p in case.spec.pieces), strict=True)
    all_logits, keys = torch.cat([*logits, *_sink(case.spec, x, logits[0])], -1), torch.cat(values, 1)
    empty = (all_logits == -math.inf).all(-1, keepdim=True)
    safe = torch.where(empty, 0.0, all_logits)
    weights = torch.where(empty, 0.0, torch.softmax(safe, -1))[..., : keys.shape[1]]
    out = torch.einsum("bthj,bjhe->bthe", weights, keys)
    lse = torch.where(empty[..., 0], -math.inf, torch.logsumexp(safe, -1))
    loss = (out * x["grad"]).sum()
    if case.lse_grad:
        loss = loss + torch.where(empty[..., 0], 0.0, lse * x["lse_grad"]).sum()
    grads = torch.autograd.grad(loss, list(asked.values()), allow_unused=True)
    named = {f"grad_{n}": torch.zeros_like(x[n]) if g is None else g for n, g in zip(asked, grads, strict=True)}
    return {"out": out.detach(), "lse": lse.detach(), **named}


def _piece(s: TiledAttention, p: Piece, x: Tensors, n: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """Logits ``[B,TQ,H,N]`` of a piece, and its values ``[B,N,H,DV]``."""
    group, batch = s.heads // s.kv_heads, n["B"]
    k, v = ((x[name] if p.batched else x[name].expand(batch, *x[name].shape)) for name in (p.k, p.v))
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    score = torch.einsum("bthd,bjhd->bthj", x[s.q], k) * s.scale
    score = s.softcap * torch.tanh(score / s.softcap) if s.softcap is not None else score
    index = {"b": (batch, 0), "i": (n["TQ"], 1), "h": (s.heads, 2), "j": (n[p.length], 3)}
    env = {a: torch.arange(size).view([-1 if d == dim else 1 for d in range(4)]) for a, (size, dim) in index.items()}
    known: dict[str, Any] = {**n, **x}
    env = {**known, **env, "i": env["i"] + n["q_offset"], "score": score}
    score = score if p.bias is None else evaluate(p.bias, env).expand(score.shape)
    if p.where is not None:
        score = torch.where(evaluate(p.where, env).expand(score.shape), score, -math.inf)
    return score, v


def _sink(s: TiledAttention, x: Tensors, like: Tensor) -> list[Tensor]:
    if s.sink is None:
        return []
    sink = torch.zeros(s.heads, dtype=torch.float64) if s.sink == "zero" else x[s.sink]
    return [sink[:, None].expand(*like.shape[:3], 1)]


def backward(
    case: TiledCase, schedule: Schedule, run: Run, change: Change = lambda x: x, exact: bool = False
) -> Tensors:
    """The gradients by the kernels, on poisoned buffers; ``change`` may put a mistake into those of q, k and v."""
    given = case.draw()
    want, s = truth(case, given), case.spec
    real = torch.float64 if exact else None
    x = {name: t.to(real) if exact and t.is_floating_point() else t for name, t in given.items()}
    x["out"] = want["out"].to(real or getattr(torch, case.out_dtype))
    x["lse"] = want["lse"].to(real or torch.float32)
    for name in ("q", *(m for p in s.pieces for m in (p.k, p.v)), *([s.sink] if s.sink in x else []), *case.captures):
        if name in x:
            dtype = real or (torch.float32 if name in (s.sink, *case.captures) else getattr(torch, s.dtype))
            x[f"grad_{name}"] = torch.full(x[name].shape, math.nan, dtype=dtype)
    x["delta"] = torch.full_like(x["lse"], math.nan)
    dots = not case.lse_grad and s.sink in (None, "zero")
    if not dots:
        run(lower_kernel(row_dot(case), schedule), x, case.params)
    for listed in (p.listed for p in s.pieces if p.listed is not None):
        make_list(listed, schedule, x, case.params, run)
        make_list(transposed(listed), schedule, x, case.params, run)
    run(change(lower_kernel(replace(grad_q(case), dots=dots), schedule)), x, case.params)
    for number in range(len(s.pieces)):
        run(change(lower_kernel(grad_kv(case, number), schedule)), x, case.params)
    for name in case.captures:
        if x[name].is_floating_point():
            run(lower_kernel(grad_capture(case, name), schedule), x, case.params)
    return x


def make_list(listed: BlockList, schedule: Schedule, x: Tensors, n: Mapping[str, int], run: Run) -> None:
    """Fill a block list's buffers."""
    tiles = [-(-n["TQ"] // listed.block_q), -(-n[listed.length] // listed.block_k)]
    tiles = tiles[::-1] if listed.transposed else tiles
    lead = (n["B"] if listed.per_batch else 1, listed.heads)
    x[listed.ids] = torch.full((*lead, *tiles), -(10**9), dtype=torch.int32)
    x[listed.counts] = torch.full((*lead, tiles[0]), -(10**9), dtype=torch.int32)
    run(lower_kernel(listed, schedule), x, n)


def row_dot(case: TiledCase) -> RowDot:
    """The kernel of delta, and of the gradient of sinks where the spec has them."""
    s = case.spec
    sink = None if s.sink in (None, "zero") else s.sink
    more = (sink, "lse", f"grad_{sink}") if sink else (None, None, None)
    lse_grad = "lse_grad" if case.lse_grad else None
    dtypes = case.out_dtype, case.grad_dtype or case.out_dtype
    return RowDot("rowdot", "out", "grad", "delta", s.heads, s.value_dim, *dtypes, lse_grad, *more)


def grad_q(case: TiledCase) -> TiledGradQ:
    """The kernel of the gradient of the queries."""
    dtype = case.grad_dtype or case.out_dtype
    return TiledGradQ("gradq", case.spec, "grad", "delta", "grad_q", dtype, case.spec.dtype)


def grad_kv(case: TiledCase, number: int) -> TiledGradKV:
    """The kernel of the gradients of one piece."""
    piece, dtype = case.spec.pieces[number], case.grad_dtype or case.out_dtype
    listed = None if piece.listed is None else transposed(piece.listed)
    return TiledGradKV(
        f"gradkv{number}", case.spec, number, "grad", "delta", f"grad_{piece.k}", f"grad_{piece.v}", dtype,
        case.spec.dtype, listed,
    )  # fmt: skip


def grad_capture(case: TiledCase, name: str) -> TiledGradCapture:
    """The kernel of the gradient of a captured tensor."""
    shape, dtype = tuple(case.captures[name].shape), case.grad_dtype or case.out_dtype
    return TiledGradCapture(f"grad_of_{name}", case.spec, name, shape, "grad", "delta", f"grad_{name}", dtype)


def transposed(listed: BlockList) -> BlockList:
    """The same list from the keys' side."""
    return replace(listed, name=f"{listed.name}_t", ids=f"{listed.ids}_t", counts=f"{listed.counts}_t", transposed=True)
