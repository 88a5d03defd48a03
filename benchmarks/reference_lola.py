"""Plain fp64 truth of LoLA's cases, chunk by chunk, all heads at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsec.benchmarks.cases import Inputs
from sparsec.benchmarks.cases_lola import LolaCase


@dataclass
class _Memory:
    """Of all heads g: the state ``[g,D,D]`` and its mass ``[g,D]``, tokens that are held, and the least gap so far."""

    state: Tensor
    mass: Tensor
    held: Tensor
    gap: Tensor

    def take_in(self, fk: Tensor, v: Tensor, chunk: Tensor, keep: int) -> None:
        """A chunk joins the cache, which gives up the pairs ``[g,N,D]`` that the state recalls best."""
        tokens = torch.cat([self.held, chunk.expand(len(fk), -1)], 1).sort(1).values
        keys, values = _rows(fk, tokens), _rows(v, tokens)
        weight = torch.einsum("gnd,gd->gn", keys, self.mass)[..., None]
        known = torch.einsum("gnd,gde->gne", keys, self.state) / torch.where(weight == 0, 1.0, weight)
        error, order = (known - values).square().sum(-1).sort(dim=1, descending=True, stable=True)
        if tokens.shape[1] > keep:
            self.gap = torch.minimum(self.gap, (error[:, keep - 1] - error[:, keep]) / error[:, keep - 1])
        gone = order[:, keep:]
        self.held = tokens.gather(1, order[:, :keep])
        self.state = self.state + torch.einsum("gnd,gne->gde", _rows(keys, gone), _rows(values, gone))
        self.mass = self.mass + _rows(keys, gone).sum(1)


def lola_output(case: LolaCase, x: Inputs, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs ``[R,H,D]`` at rows of one batch entry ``[T,heads,D]`` in fp64, and how decided their caches are."""
    fk, v = (x[name].double().transpose(0, 1) for name in ("fk", "v"))
    heads = v.shape[0]
    nothing = torch.zeros(heads, 0, dtype=torch.int64, device=v.device)
    endless = torch.full((heads,), torch.inf, dtype=torch.float64, device=v.device)
    memory = _Memory(v.new_zeros(heads, case.D, case.D), v.new_zeros(heads, case.D), nothing, endless)
    found, gaps = list[Tensor](), list[Tensor]()
    lag = case.window // case.chunk
    for chunk in range(-(-case.T // case.chunk)):
        first = (chunk - lag - 1) * case.chunk
        if first >= 0:
            memory.take_in(fk, v, torch.arange(first, first + case.chunk, device=v.device), case.keep)
        own = rows[rows // case.chunk == chunk]
        if len(own):
            found.append(_answers(case, x, memory, own, max(first + case.chunk, 0)))
            gaps.append(memory.gap.repeat_interleave(case.group).expand(len(own), -1))
    return torch.cat(found), torch.cat(gaps)


def _answers(case: LolaCase, x: Inputs, memory: _Memory, rows: Tensor, first: int) -> Tensor:
    """Outputs ``[R,H,D]`` of rows of one chunk, whose window begins at ``first``."""
    near = torch.arange(first, int(rows.max()) + 1, device=rows.device)
    tokens = torch.cat([memory.held, near.expand(len(memory.held), -1)], 1)
    k, v = (_rows(x[name].double().transpose(0, 1), tokens) for name in ("k", "v"))
    q, fq = (x[name][rows].double().unflatten(1, (len(k), case.group)) for name in ("q", "fq"))
    scores = torch.einsum("rgcd,gnd->rgcn", q, k) * case.D**-0.5
    weights = torch.where((tokens <= rows[:, None, None])[:, :, None], scores.exp(), 0.0)
    total = weights.sum(-1) + torch.einsum("rgcd,gd->rgc", fq, memory.mass)
    sums = torch.einsum("rgcn,gne->rgce", weights, v) + torch.einsum("rgcd,gde->rgce", fq, memory.state)
    return (sums / total[..., None]).flatten(1, 2)


def _rows(x: Tensor, at: Tensor) -> Tensor:
    """Rows ``[g,n,D]`` of x ``[g,N,D]``."""
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[2]))
