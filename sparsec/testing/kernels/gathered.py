"""Random inputs of gathered attention, and its output and gradients by autograd over dense scores in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsec.lower.gathered import chunks
from sparsec.plan.grad_specs import GatheredGradKV, GatheredGradQ
from sparsec.plan.specs import GatheredAttention

Rule = Callable[[Tensor, Tensor, Tensor], Tensor]
GRADS = ("q", "k", "v", "w")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Lengths, and the share of lists that have their own chunk."""

    tq: int = 7
    tk: int = 75
    offset: int = 68
    batch: int = 1
    own: float = 0.5

    @property
    def params(self) -> dict[str, int]:
        """The launch parameters."""
        return {"B": self.batch, "TQ": self.tq, "TK": self.tk, "q_offset": self.offset}


def attention(
    group: int = 4, kv_heads: int = 2, dims: tuple[int, int] = (32, 32), **changes: object
) -> GatheredAttention:
    """Joint softmax over 4 chunks of 16 tokens per key/value head."""
    base = GatheredAttention(
        "attend", "q", "k", "v", "ids", None, "out", "lse", "kv_head", 4, 16, group * kv_heads, kv_heads, *dims,
        dims[0] ** -0.5, "float32",
    )  # fmt: skip
    base = replace(base, **changes)  # type: ignore[arg-type]
    return replace(base, weights="w", lse=None) if base.per == "chunk" else base


def grad_q(s: GatheredAttention, weights: bool = True) -> GatheredGradQ:
    """The kernel of dq and, for a softmax per chunk, of dw."""
    own = s.per == "chunk"
    return GatheredGradQ(
        "pull_q", s, "do", None if own else "delta", "dq", "dw" if own and weights else None, s.out_dtype or s.dtype,
        s.dtype,
    )  # fmt: skip


def grad_kv(s: GatheredAttention) -> GatheredGradKV:
    """The kernel of dk and dv."""
    delta = None if s.per == "chunk" else "delta"
    return GatheredGradKV("pull_kv", s, "do", delta, "dk", "dv", s.out_dtype or s.dtype, s.dtype)


def draw(s: GatheredAttention, n: Sizes, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Inputs and the gradient of the output; started chunks in random order, -1 among them."""
    torch.manual_seed(seed)
    count = -(-n.tk // s.chunk)
    mine = ((torch.arange(n.tq) + n.offset) // s.chunk).clamp_min(0)[None, :, None, None]
    rank = torch.rand(n.batch, n.tq, chunks.lists(s), count)
    rank = rank.masked_fill(torch.arange(count) == mine, 2.0 if n.own else -1.0)
    rank = rank.masked_fill(torch.arange(count) > mine, -1.0)
    best, ids = rank.topk(min(s.slots, count), -1)
    ids = ids.masked_fill((best < 0) | (torch.rand(ids.shape) < (0.15 if n.own < 1 else 0.0)), -1)
    ids = torch.nn.functional.pad(ids, (0, s.slots - ids.shape[-1]), value=-1)
    ids = ids.gather(-1, torch.rand(ids.shape).argsort(-1)).int()
    shapes = {
        "q": (n.tq, s.heads, s.head_dim), "k": (n.tk, s.kv_heads, s.head_dim), "v": (n.tk, s.kv_heads, s.value_dim),
        "do": (n.tq, s.heads, s.value_dim),
    }  # fmt: skip
    return {name: torch.randn(n.batch, *shape, dtype=dtype) for name, shape in shapes.items()} | {
        "ids": ids.contiguous(),
        "w": torch.rand(ids.shape, dtype=dtype).masked_fill(ids < 0, math.nan),
        "counts": torch.randint(0, s.slots + 1, ids.shape[:3], dtype=torch.int32),
        "sinks": torch.randn(s.heads, dtype=dtype),
        "slopes": torch.rand(s.heads, dtype=dtype),
    }


def lists(s: GatheredAttention, x: dict[str, Tensor]) -> Tensor:
    """The lists of every query head, cut to their counts."""
    ids, counts = x["ids"].long(), x["counts"]
    if s.counts is not None:
        ids = ids.masked_fill(torch.arange(s.slots) >= counts[..., None], -1)
    return ids.repeat_interleave(s.heads // ids.shape[2], 2)


def forward(
    s: GatheredAttention, x: dict[str, Tensor], leaves: dict[str, Tensor], offset: int, rule: Rule | None
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp (of nothing, minus infinity) from fp64 ``leaves``."""
    q, k, v = (leaves[n] for n in "qkv")
    k, v = (t.repeat_interleave(s.heads // s.kv_heads, 2) for t in (k, v))
    i, h, j = torch.arange(q.shape[1])[:, None, None] + offset, torch.arange(s.heads)[:, None], torch.arange(k.shape[1])
    score = torch.einsum("bthd,bjhd->bthj", q, k) * s.scale
    score = s.softcap * torch.tanh(score / s.softcap) if s.softcap else score
    score = score + torch.tanh(score) - x["slopes"].double()[h] * (i - j) if s.bias is not None else score
    shown = torch.ones(1, 1, dtype=torch.bool) if rule is None else rule(i, j, h)
    ids = lists(s, x)
    chosen = (ids[..., None] == j // s.chunk) & shown[..., None, :]
    sink = torch.as_tensor({None: -math.inf, "zero": 0.0, "sinks": x["sinks"].double()}[s.sink], dtype=torch.float64)
    sink = sink.expand(s.heads)[:, None].expand(*score.shape[:3], 1)

    def attend(visible: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.cat([score.masked_fill(~visible, -math.inf), sink], -1)
        empty = (logits.detach() == -math.inf).all(-1, keepdim=True)
        logits = logits.masked_fill(empty, 0.0)
        p = torch.softmax(logits, -1).masked_fill(empty, 0.0)[..., :-1]
        return torch.einsum("bthj,bjhe->bthe", p, v), torch.logsumexp(logits, -1).masked_fill(empty[..., 0], -math.inf)

    if s.per == "joint":
        return attend(chosen.any(-2))
    weights = leaves["w"].repeat_interleave(s.heads // leaves["w"].shape[2], 2).masked_fill(ids < 0, 0.0)
    parts = [weights[..., n, None] * attend(chosen[..., n, :])[0] for n in range(s.slots)]
    return torch.stack(parts).sum(0), torch.empty(0)


def truth(s: GatheredAttention, x: dict[str, Tensor], offset: int, rule: Rule | None = None) -> dict[str, Tensor]:
    """``dq``, ``dk``, ``dv``, ``dw``, and what backward kernels read: ``out``, ``lse`` and ``delta``; all fp64."""
    leaves = {name: x[name].double().requires_grad_() for name in GRADS}
    out, lse = forward(s, x, leaves, offset, rule)
    found = torch.autograd.grad(out, list(leaves.values()), x["do"].double(), allow_unused=True)
    grads = {
        f"d{name}": torch.zeros_like(leaf) if g is None else g
        for (name, leaf), g in zip(leaves.items(), found, strict=True)
    }
    return grads | {"out": out.detach(), "lse": lse.detach(), "delta": (out.detach() * x["do"].double()).sum(-1)}
