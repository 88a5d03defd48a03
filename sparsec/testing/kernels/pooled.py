"""Random lists of blocks behind a softmax and pools, and the gradients of queries and keys by autograd in fp64."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsec.lower.select.candidates import offsets
from sparsec.lower.select.frame import sharing
from sparsec.plan.selection.pooled_specs import PooledGrad
from sparsec.plan.specs import Pool, Selector
from sparsec.scalar.expr import Expr, var

OUTPUTS = ("dq", "dkeys")
SEEN: Expr = var("c") * 4 + 7 <= var("i")
"""Windows of 8 tokens every 4 that have ended."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Queries, summaries, batch, and the position of the first query."""

    tq: int = 21
    units: int = 19
    batch: int = 2
    offset: int = 60

    @property
    def params(self) -> dict[str, int]:
        """The launch parameters; the number of tokens has no part in it."""
        blocks = -(-self.units // 4)
        known = {"B": self.batch, "TQ": self.tq, "TK": 10**6, "q_offset": self.offset}
        return {**known, "N": self.units, "NB": blocks}


def selector(heads: int = 4, kv_heads: int = 2, **changes: object) -> Selector:
    """3 blocks of 16 tokens by shares of a softmax over windows of 8, summed over the group."""
    base = Selector(
        "select", "q", "keys", "ids", "w", heads, kv_heads, 32, "N", "NB", 0.3, 3, 3, "float32", softmax=True,
        visible=SEEN, group="sum", pool=Pool("overlap", 8, 4, 16), weights="softmax",
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def grad(s: Selector, queries: bool = True, keys: bool = True) -> PooledGrad:
    """The kernel of both gradients, or of one."""
    return PooledGrad("pull", s, "ds", "dq" if queries else None, "dkeys" if keys else None, s.dtype, s.dtype)


def draw(s: Selector, n: Sizes, exact: bool) -> dict[str, Tensor]:
    """Inputs and outputs, in fp64 where ``exact``; -1 among the blocks, NaN where nothing is yet."""
    torch.manual_seed(n.tq)
    dtype, wide = (torch.float64, torch.float64) if exact else (getattr(torch, s.dtype), torch.float32)
    q = torch.randn(n.batch, n.tq, s.heads, s.dim, dtype=torch.float64).to(dtype)
    keys = torch.randn(n.batch, n.units, s.kv_heads, s.dim, dtype=torch.float64)
    keys = keys if exact else keys.to(getattr(torch, s.key_dtype or s.dtype))
    blocks = n.params["NB"] if s.pool is not None else n.units
    ids = torch.rand(n.batch, n.tq, s.heads // sharing(s), blocks).topk(min(s.slots, blocks), -1).indices
    ids = torch.nn.functional.pad(ids, (0, s.slots - ids.shape[-1]), value=-1)
    ids = ids.masked_fill(torch.rand(ids.shape) < 0.2, -1).int().contiguous()
    ds = torch.randn(ids.shape, dtype=wide).masked_fill(ids < 0, 0.0)
    x = {"q": q, "keys": keys, "ids": ids, "ds": ds}
    return x | {f"d{name}": torch.full_like(x[name], math.nan, dtype=dtype) for name in ("q", "keys")}


def truth(s: Selector, n: Sizes, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of sum(ds * score, or weight, of the chosen); blocks are sums or means of what they collect."""
    q, keys = (x[name].double().requires_grad_() for name in ("q", "keys"))
    score = s.scale * torch.einsum("bthd,bnhd->bthn", q, keys.repeat_interleave(s.heads // s.kv_heads, 2))
    position, number = torch.arange(n.tq)[:, None] + n.offset, torch.arange(n.units)
    seen = ((4 * number + 7 <= position) | (s.visible is None and s.eligible is None))[:, None]
    if s.softmax:
        score = score.masked_fill(~seen, -math.inf).softmax(-1).nan_to_num(0.0)
    elif s.pool is not None:
        score = score.masked_fill(~seen, 0.0)
    if s.group is not None:
        grouped = score.unflatten(2, (s.kv_heads, sharing(s)))
        score = {"mean": grouped.mean, "sum": grouped.sum, "max": grouped.amax}[s.group](3)
    if s.weights == "softmax_all":
        score = score.masked_fill(~seen, -math.inf).softmax(-1).nan_to_num(0.0)
    if s.pool is not None:
        score = score @ _collected(s.pool, n)
    found = score.gather(-1, x["ids"].long().clamp_min(0))
    dq, dkeys = torch.autograd.grad((found * x["ds"].double()).sum(), (q, keys))
    return {"dq": dq, "dkeys": dkeys}


def _collected(pool: Pool, n: Sizes) -> Tensor:
    """How often each summary counts in each block, ``[N, NB]``."""
    step, counts = offsets(pool)
    found = torch.zeros(n.units, n.params["NB"], dtype=torch.float64)
    for block in range(n.params["NB"]):
        for offset, count in counts.items():
            if 0 <= step * block + offset < n.units:
                found[step * block + offset, block] = count
    return found / (found != 0).sum(0).clamp_min(1) if pool.kind == "mean" else found
