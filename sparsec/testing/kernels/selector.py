"""Random lists of chosen units, and the gradients of their scores, queries and keys by autograd in fp64."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsec.lower.select.frame import sharing
from sparsec.oracle.weights import weigh_query
from sparsec.plan.grad_specs import SelectorGradKeys, SelectorGradQ
from sparsec.plan.specs import Selector

OUTPUTS = ("ds", "dq", "dkeys")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Queries, units, batch, and the share of slots that hold nothing."""

    tq: int = 21
    units: int = 12
    batch: int = 2
    empty: float = 0.2

    @property
    def params(self) -> dict[str, int]:
        """The launch parameters; the number of tokens has no part in it."""
        return {"B": self.batch, "TQ": self.tq, "TK": 10**6, "q_offset": 7, "N": self.units, "NB": self.units}


def selector(heads: int = 4, kv_heads: int = 2, **changes: object) -> Selector:
    """5 units by stick-breaking per key/value head, scored by the mean of the group."""
    base = Selector(
        "select", "q", "keys", "ids", "w", heads, kv_heads, 32, "N", "NB", 0.3, 5, 5, "float32", group="mean",
        order="newest", weights="stick",
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def grads(s: Selector) -> tuple[SelectorGradQ, SelectorGradKeys]:
    """The two backward kernels, in the order in which they run."""
    to_keys = SelectorGradKeys("pull_keys", s, "ds", "dkeys", s.dtype)
    return SelectorGradQ("pull_q", s, "dw", "ds", "dq", s.dtype), to_keys


def draw(s: Selector, n: Sizes, exact: bool) -> dict[str, Tensor]:
    """Inputs and outputs of both kernels, in fp64 where ``exact``.

    Distinct units, the first of them popular, -1 among them; NaN where nothing is yet or never.
    """
    torch.manual_seed(n.tq)
    dtype, wide = (torch.float64, torch.float64) if exact else (getattr(torch, s.dtype), torch.float32)
    lists = s.heads // sharing(s)
    q = torch.randn(n.batch, n.tq, s.heads, s.dim, dtype=torch.float64).to(dtype)
    keys = torch.randn(n.batch, n.units, s.kv_heads, s.dim, dtype=torch.float64)
    keys = keys if exact else keys.to(getattr(torch, s.key_dtype or s.dtype))
    rank = torch.rand(n.batch, n.tq, lists, n.units) + torch.arange(n.units).eq(0)
    ids = rank.topk(min(s.slots, n.units), -1).indices
    ids = torch.nn.functional.pad(ids, (0, s.slots - ids.shape[-1]), value=-1)
    ids = ids.gather(-1, torch.rand(ids.shape).argsort(-1))
    ids = ids.masked_fill(torch.rand(ids.shape) < n.empty, -1).int().contiguous()
    dw = torch.randn(ids.shape, dtype=wide).masked_fill(ids < 0, math.nan)
    x = {"q": q, "keys": keys, "ids": ids, "dw": dw}
    x |= {"w": truth(s, x)["w"].to(wide), "ds": torch.full_like(dw, math.nan)}
    return x | {f"d{name}": torch.full_like(x[name], math.nan, dtype=dtype) for name in ("q", "keys")}


def truth(s: Selector, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the oracle's rules, and the gradients of chosen scores, queries and keys; all fp64."""
    q, keys = (x[name].double().requires_grad_() for name in ("q", "keys"))
    score = s.scale * torch.einsum("bthd,bnhd->bthn", q, keys.repeat_interleave(s.heads // s.kv_heads, 2))
    if s.group is not None:
        grouped = score.unflatten(2, (s.kv_heads, sharing(s)))
        score = grouped.mean(3) if s.group == "mean" else grouped.sum(3)
    ids = x["ids"].long()
    rows = zip(score.flatten(0, 2), ids.flatten(0, 2), strict=True)
    weights = torch.stack([weigh_query(row, chosen, s.weights) for row, chosen in rows])  # type: ignore[arg-type]
    weights = weights.view(ids.shape) + 0.0 * score.sum()
    by_unit, dq, dkeys = torch.autograd.grad(weights, (score, q, keys), x["dw"].double().masked_fill(ids < 0, 0.0))
    ds = by_unit.gather(-1, ids.clamp_min(0)).masked_fill(ids < 0, 0.0)
    return {"w": weights.detach(), "ds": ds, "dq": dq, "dkeys": dkeys}
