"""The quick form of matrix states: fp64, a chunk of tokens at a time, all heads and parts together.

With p = e·beta·k, erase vectors a and b (by default −k and p) and y_t = aᵀR, where R is what the erase term reads, a
state is S_t = exp(Γ_t) S_0 + Σ_{s≤t} exp(Γ_t − Γ_s) (p_s v_sᵀ + b_s y_sᵀ), and the y of a chunk solve a triangular
system. Chunks begin at the state that the one before left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sparsec.oracle.states import Written
from sparsec.oracle.steps import Stepped

CHUNK = {"scalar": 64, "key": 16}
LEAST = -1000.0
"""A log-decay whose exponential is 0; sums of it stay finite, those of −inf do not."""


def recall(bank: Written, q: Tensor, share: Tensor, when: str) -> Tensor:
    """Σ_n share_n · M_nᵀq: q ``[B,T,H,D]``, share ``[B,T,H,N]`` -> ``[B,T,H,DV]``."""
    if isinstance(bank, Stepped):
        return _stepped(bank, q, share, when)
    heads = bank.k.shape[2]
    asked = (share[..., None] * q[..., None, :]).unflatten(2, (heads, -1))  # [B,T,HKV,G,N,D]
    read, last = _walk(bank, asked.permute(0, 2, 4, 3, 1, 5), when)
    vars(bank).setdefault("last", last.transpose(1, 2))  # one walk gives both
    return read.sum(2).permute(0, 3, 1, 2, 4).flatten(2, 3)


def final(bank: Written) -> Tensor:
    """The states after the last token ``[B,N,H,D,DV]``."""
    if isinstance(bank, Stepped):
        return final(bank.rows())
    batch, tokens, heads, dim = bank.k.shape
    return _walk(bank, bank.k.new_zeros(batch, heads, 1, 1, tokens, dim), "after")[1].transpose(1, 2)


def _stepped(bank: Stepped, q: Tensor, share: Tensor, when: str) -> Tensor:
    """Of several steps per token, the first or the last is read."""
    steps = 1 + len(bank.later)
    place = steps - 1 if when == "after" else 0
    among = [torch.zeros_like(q)] * place + [q] + [torch.zeros_like(q)] * (steps - 1 - place)
    read = recall(bank.rows(), torch.stack(among, 2).flatten(1, 2), share.repeat_interleave(steps, 1), when)
    return read[:, place::steps]


def _walk(bank: Written, q: Tensor, when: str) -> tuple[Tensor, Tensor]:
    """q ``[B,HKV,N,G,T,D]`` -> what it reads ``[B,HKV,N,G,T,DV]``, and the last states ``[B,HKV,N,D,DV]``."""
    every = [q, *_operands(bank)]
    size = CHUNK["key" if bank.decay is not None and bank.decay.ndim == 4 else "scalar"]
    state, read, erases = bank.initial.transpose(1, 2), list[Tensor](), bank.rule.delta or bank.erase is not None

    def chunk(old: Tensor, *pieces: Tensor) -> tuple[Tensor, Tensor]:
        return _chunk(old, pieces, when, erases, bank.rule.undecayed)

    if not q.shape[4]:
        return q.new_zeros(*q.shape[:5], bank.v.shape[3]), state
    again = torch.is_grad_enabled() and q.shape[4] > 4 * size
    for pieces in zip(*(x.split(size, dim=-2) for x in every), strict=True):
        found = _again(chunk, state, pieces) if again else chunk(state, *pieces)
        read.append(found[0])
        state = found[1]
    return torch.cat(read, dim=4), state


def _again(
    chunk: Callable[..., tuple[Tensor, Tensor]], state: Tensor, pieces: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """A chunk of which autograd keeps no more than what it began with."""
    found: tuple[Tensor, Tensor] = checkpoint(chunk, state, *pieces, use_reentrant=False)
    return found


def _operands(bank: Written) -> list[Tensor]:
    """Per part ``[B,HKV,N,T,…]``: log-decays, p, v, a and b; a part that rests neither decays nor is written."""
    share, resting = (x.permute(0, 2, 3, 1)[..., None] for x in (bank.share, ~bank.active))
    k, v = (x.transpose(1, 2)[:, :, None].expand(-1, -1, share.shape[2], -1, -1) for x in (bank.k, bank.v))
    p = share * k if bank.beta is None else share * bank.beta.transpose(1, 2)[:, :, None, :, None] * k
    decay = torch.zeros_like(share) if bank.decay is None else _logs(bank.decay).transpose(1, 2)[:, :, None]
    if bank.rule.freeze:
        decay = torch.where(resting, 0.0, decay)
    a, b = (-k, p) if bank.erase is None else (x.transpose(1, 2)[:, :, None] for x in bank.erase)
    return [decay.expand(*k.shape[:4], -1), p, v, a.expand_as(k), b if bank.erase is None else share * b]


def _logs(decay: Tensor) -> Tensor:
    """Log-decays ``[B,T,H,1 or D]``, none so low that sums of them would be infinite."""
    return (decay[..., None] if decay.ndim == 3 else decay).clamp(min=LEAST)


def _chunk(state: Tensor, pieces: Sequence[Tensor], when: str, erases: bool, undecayed: bool) -> tuple[Tensor, Tensor]:
    """One chunk: what its queries read, and the state that it leaves."""
    q, decay, p, v, a, b = pieces
    end, size = decay.cumsum(-2), decay.shape[-2]
    past = torch.ones(size, size, dtype=torch.bool, device=q.device).tril(-1)
    seen = past if when == "before" else past | torch.eye(size, dtype=torch.bool, device=q.device)
    written, last, lags = [(p, v)], end[..., -1:, :], _lags(decay)
    if erases:
        left = _fading(lags.roll(1, -3) if undecayed else lags, past)
        at = end - decay if undecayed else end
        y = _product(a, p, left) @ v + (a * at.exp()) @ state
        system = torch.eye(size, dtype=q.dtype, device=q.device) - _product(a, b, left)
        written.append((b, torch.linalg.solve_triangular(system, y, upper=False, unitriangular=True)))
    fading = _fading(lags, seen)
    read = (q * end.exp()[..., None, :, :]) @ state[..., None, :, :]
    for key, value in written:
        read = read + _product(q, key[..., None, :, :], fading[..., None, :, :, :]) @ value[..., None, :, :]
    kept = last.mT.exp() * state
    later = torch.cat([decay[..., 1:, :], torch.zeros_like(last)], -2).flip(-2).cumsum(-2).flip(-2)
    for key, value in written:
        kept = kept + (key * later.exp()).mT @ value
    return read, kept


def _lags(decay: Tensor) -> Tensor:
    """What fades from token s to a later t, the sum of decays after s: ``[…,C,1 or D]`` -> ``[…,t,s,1 or D]``.

    Sums of their own, not differences of sums from the start: a decay has a gradient from what it fades alone, so that
    where it fades nothing the gradient is 0 and no rest of terms that cancel.
    """
    size = decay.shape[-2]
    after = torch.ones(size, size, dtype=torch.bool, device=decay.device).tril(-1)[..., None]
    return torch.where(after, decay[..., :, None, :], 0.0).cumsum(-3)


def _fading(lags: Tensor, seen: Tensor) -> Tensor:
    """exp of the lags ``[…,t,s,1 or D]`` where s is seen from t, else 0."""
    return lags.masked_fill(~seen[..., None], -torch.inf).exp()


def _product(x: Tensor, key: Tensor, fading: Tensor) -> Tensor:
    """Σ_d x_td key_sd fading_tsd: ``[…,t,D]``, ``[…,s,D]``, ``[…,t,s,1 or D]`` -> ``[…,t,s]``."""
    if fading.shape[-1] == 1:
        return (x @ key.mT) * fading[..., 0]
    return (x[..., :, None, :] @ (key[..., None, :, :] * fading).mT)[..., 0, :]
