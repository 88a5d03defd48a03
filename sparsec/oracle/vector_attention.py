"""The quick form of attention: the functions of `sparsec.oracle.loop` with the same signatures, without its loops."""

from __future__ import annotations

import torch
from torch import Tensor


def spread(x: Tensor, heads: int) -> Tensor:
    """``[B,R,HS,…]`` -> ``[B,R,heads,…]``: every head gets what it shares with its neighbours."""
    return x.repeat_interleave(heads // x.shape[2], dim=2)


def dot(q: Tensor, keys: Tensor) -> Tensor:
    """q ``[B,R,H,D]``, keys ``[B,N,HKV,D]`` -> ``[B,R,H,N]``."""
    grouped = q.unflatten(2, (keys.shape[2], -1))
    return torch.einsum("brsgd,bnsd->brsgn", grouped, keys).flatten(2, 3)


def cosine(q: Tensor, keys: Tensor) -> Tensor:
    """q ``[B,R,H,D]``, keys ``[B,N,HKV,D]`` -> ``[B,R,H,N]``; a zero vector has cosine 0."""
    return dot(_unit(q), _unit(keys))


def indexer(q: Tensor, keys: Tensor, head_weights: Tensor) -> Tensor:
    """q ``[B,R,HI,D]``, keys ``[B,N,1,D]``, head_weights ``[B,R,HI]`` -> ``[B,R,1,N]``."""
    return torch.einsum("brh,brhn->brn", head_weights, torch.relu(dot(q, keys))).unsqueeze(2)


def attend(score: Tensor, v: Tensor, visible: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    """score and visible ``[B,R,H,N]``, v ``[B,N,HKV,DV]``, sink ``[H]`` -> o ``[B,R,H,DV]``, lse ``[B,R,H]``."""
    there = visible & (score != -torch.inf)
    power, top, total = _exponentials(score, there, None if sink is None else sink[:, None])
    empty = total == 0
    safe = torch.where(empty, 1.0, total)
    o = _weighted(power / safe, v, there)
    return o, torch.where(empty, -torch.inf, top + torch.log(safe)).squeeze(-1)


def attend_chunks(
    score: Tensor, v: Tensor, visible: Tensor, chunks: Tensor, chunk_weights: Tensor, size: int, sink: Tensor | None
) -> Tensor:
    """As `attend` with lists ``[B,R,HS,K]`` and their weights: a softmax inside each chunk -> o ``[B,R,H,DV]``."""
    heads, keys = score.shape[2:]
    share = spread(_by_chunk(chunks, chunk_weights, -(-keys // size)), heads)
    there = members(chunks, size, keys, heads) & visible & (score != -torch.inf)
    spare = -keys % size
    padded = torch.nn.functional.pad(score, (0, spare)).unflatten(-1, (-1, size))
    inside = torch.nn.functional.pad(there, (0, spare)).unflatten(-1, (-1, size))
    power, _, total = _exponentials(padded, inside, None if sink is None else sink[:, None, None])
    p = power / torch.where(total == 0, 1.0, total) * share[..., None]
    return _weighted(p.flatten(-2)[..., :keys], v, there)


def members(chunks: Tensor, size: int, keys: int, heads: int) -> Tensor:
    """Lists ``[B,R,HS,K]`` -> which keys each head may see, bool ``[B,R,H,keys]``."""
    chosen = _by_chunk(chunks, torch.ones_like(chunks), -(-keys // size)) > 0
    return spread(chosen.repeat_interleave(size, dim=-1)[..., :keys], heads)


def of_members(value: Tensor, chunks: Tensor, size: int, keys: int, heads: int) -> Tensor:
    """Numbers ``[B,R,HS,K]`` of listed chunks -> of the keys in them for each head, 0 elsewhere ``[B,R,H,keys]``."""
    by_chunk = _by_chunk(chunks, value, -(-keys // size))
    return spread(by_chunk.repeat_interleave(size, dim=-1)[..., :keys], heads)


def divergence(target: Tensor, score: Tensor, present: Tensor) -> Tensor:
    """Masses and scores ``[B,R,HS,N]`` of what is present -> KL of the one to the softmax of the other ``[B,R,HS]``."""
    mass = torch.where(present, target, 0.0)
    total = mass.sum(-1, keepdim=True)
    p = mass / torch.where(total == 0, 1.0, total)
    some = p > 0
    gap = torch.log(torch.where(some, p, 1.0)) - torch.where(present, score, 0.0) + _log_sum(score, present)
    return torch.where(some, p * gap, 0.0).sum(-1)


def _log_sum(score: Tensor, present: Tensor) -> Tensor:
    """The log-sum-exp of the present ``[…,1]``; 0 where nothing is."""
    _, top, total = _exponentials(score, present, None)
    return torch.where(total == 0, 0.0, top + torch.log(torch.where(total == 0, 1.0, total)))


def softmax(score: Tensor, visible: Tensor) -> Tensor:
    """Probabilities over the visible -> ``[B,R,H,N]``."""
    power, _, total = _exponentials(score, visible, None)
    return power / torch.where(total == 0, 1.0, total)


def _by_chunk(chunks: Tensor, value: Tensor, count: int) -> Tensor:
    """Values ``[B,R,HS,K]`` of listed chunks -> ``[B,R,HS,count]``, 0 where not listed; −1 goes to a spare column."""
    table = value.new_zeros(*chunks.shape[:-1], count + 1)
    return table.scatter_add(-1, torch.where(chunks < 0, count, chunks), value)[..., :count]


def _exponentials(score: Tensor, there: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """exp(score − top) where there is a key, top, and the sum over the last dimension with the sink's share."""
    present = torch.where(there, score, -torch.inf)
    nothing = present.new_full((*present.shape[:-1], 1), -torch.inf)
    top = torch.cat([present.detach(), nothing], -1).amax(-1, keepdim=True)
    if sink is not None:
        top = torch.maximum(top, sink.detach())
    top = torch.where(top == -torch.inf, 0.0, top)
    power = torch.exp(present - top)
    total = power.sum(-1, keepdim=True)
    return power, top, total if sink is None else total + torch.exp(sink - top)


def _weighted(p: Tensor, v: Tensor, there: Tensor) -> Tensor:
    """Σ p·v over keys, where a key that is not there adds nothing even if its value is not finite."""
    o = _mix(p, torch.nan_to_num(v, nan=0.0, posinf=0.0, neginf=0.0))
    if bool(v.isfinite().all()):
        return o
    seen = there.to(v.dtype)
    for value in (torch.inf, -torch.inf):
        o = torch.where(_mix(seen, (v == value).to(v.dtype)) > 0, o + value, o)
    return torch.where(_mix(seen, v.isnan().to(v.dtype)) > 0, torch.nan, o)


def _mix(p: Tensor, v: Tensor) -> Tensor:
    """p ``[B,R,H,N]``, v ``[B,N,HKV,DV]`` -> ``[B,R,H,DV]``."""
    return torch.einsum("brsgn,bnse->brsge", p.unflatten(2, (v.shape[2], -1)), v).flatten(2, 3)


def _unit(x: Tensor) -> Tensor:
    length = x.norm(dim=-1, keepdim=True)
    return x / torch.where(length > 0, length, 1)
