"""Matrix states, token by token: the meaning of `write`, `residual` and `recall` (semantics §3.2, §5, §6).

A state M ``[D,DV]`` is key-first: it answers q with Mᵀq. Decays are logarithms, at most 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from sparsec.ir.build_state import TIE
from sparsec.oracle.apart import Apart, apart


@dataclass(frozen=True, slots=True)
class Rule:
    """How one part is written.

    Attributes:
        delta: write v − prediction instead of v.
        undecayed: the prediction reads the state before its decay (RWKV-7), not after (GDN, KDA).
        freeze: a part that is not active keeps still; else it decays without being written.
    """

    delta: bool
    undecayed: bool = False
    freeze: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """What one token brings to one head: k ``[D]``, v ``[DV]``, beta (0-dim), log-decay (0-dim, ``[D]`` or ``[D,DV]``)
    or None, and the erase vectors a, b ``[D]`` or None."""

    k: Tensor
    v: Tensor
    beta: Tensor
    decay: Tensor | None
    erase: tuple[Tensor, Tensor] | None


@dataclass(frozen=True, slots=True)
class Part:
    """One matrix of a bank at one moment: M ``[D,DV]`` and the decayed sum of its written keys z ``[D]``."""

    m: Tensor
    z: Tensor


@dataclass(frozen=True)
class Written:
    """A bank that every token writes; what it holds after each of them is worked out on first use.

    Attributes:
        initial: the bank before the first token, ``[B,N,H,D,DV]``.
        k, v: ``[B,T,H,D]`` and ``[B,T,H,DV]``.
        beta: ``[B,T,H]`` or None.
        decay: ``[B,T,H]``, ``[B,T,H,D]``, ``[B,T,H,D,DV]`` or None.
        erase: a and b ``[B,T,H,D]``, or None.
        share: ``[B,T,H,N]``, e of the active parts, 0 of the others.
        active: bool ``[B,T,H,N]``.
        by_chunk: whether what is read may be computed a chunk of tokens at a time.
        ids: int ``[B,T,H,slots]``, the parts as the route lists them; None where there is no route.
    """

    initial: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor | None
    decay: Tensor | None
    erase: tuple[Tensor, Tensor] | None
    share: Tensor
    active: Tensor
    rule: Rule
    by_chunk: bool = False
    ids: Tensor | None = None

    def listed(self, b: int, t: int, h: int) -> list[int]:
        """A token's parts, as its list has them."""
        if self.ids is None:
            return [n for n, active in enumerate(self.active[b, t, h].tolist()) if active]
        return [n for n in self.ids[b, t, h].tolist() if n >= 0]

    @property
    def before(self) -> Tensor:
        """``[B,T,H,N,D,DV]``, decayed by the token but not yet written."""
        return self._walked[0]

    @property
    def after(self) -> Tensor:
        """``[B,T,H,N,D,DV]``, written."""
        return self._walked[1]

    @property
    def mass(self) -> Tensor:
        """``[B,T,H,N,D]``, the decayed sum of e·beta·k."""
        return self._walked[2]

    @cached_property
    def last(self) -> Tensor:
        """The states after the last token ``[B,N,H,D,DV]``."""
        if self.by_chunk:
            from sparsec.oracle import vector_states

            return vector_states.final(self)
        return self.after[:, -1].transpose(1, 2) if self.k.shape[1] else self.initial

    @cached_property
    def _walked(self) -> tuple[Tensor, Tensor, Tensor]:
        """Before, after and mass, batch entry by batch entry and head by head."""
        batch, tokens, heads = self.active.shape[:3]
        if not batch:
            none = self.initial.new_zeros(0, tokens, heads, *self.initial.shape[1:2], *self.initial.shape[3:])
            return none, none, none[..., 0]
        each = [self._head(b, h) for b, h in product(range(batch), range(heads))]
        stacked = (torch.stack(field).unflatten(0, (batch, heads)).transpose(1, 2) for field in zip(*each, strict=True))
        before, after, mass = stacked
        return before, after, mass

    def _head(self, b: int, h: int) -> tuple[Tensor, Tensor, Tensor]:
        """One head's bank over its tokens -> before, after ``[T,N,D,DV]`` and mass ``[T,N,D]``."""
        parts = [Part(m, m.new_zeros(m.shape[0])) for m in self.initial[b, :, h]]
        share, active = apart(self.share[b, :, h], 2), self.active[b, :, h].tolist()
        before, after, mass = [], [], []
        for t in range(self.k.shape[1]):
            step = self._step(b, t, h)
            fresh = [decayed(p, step.decay) if active[t][n] or not self.rule.freeze else p for n, p in enumerate(parts)]
            parts = [
                write_part(p, step, share[t][n], self.rule) if active[t][n] else fresh[n] for n, p in enumerate(parts)
            ]
            before.append(torch.stack([p.m for p in fresh]))
            after.append(torch.stack([p.m for p in parts]))
            mass.append(torch.stack([p.z for p in parts]))
        if not before:
            return (none := self.initial.new_zeros(0, *self.initial[b, :, h].shape)), none, none[..., 0]
        return torch.stack(before), torch.stack(after), torch.stack(mass)

    def _step(self, b: int, t: int, h: int) -> Step:
        own = {"beta": self.v.new_ones(())} | {name: x[b][t][h] for name, x in self._brought.items()}
        return Step(own["k"], own["v"], own["beta"], own.get("decay"), (own["a"], own["b"]) if "a" in own else None)

    @cached_property
    def _brought(self) -> dict[str, Apart]:
        """What the tokens bring, of each batch entry, token and head."""
        a, b = self.erase or (None, None)
        given = {"k": self.k, "v": self.v, "beta": self.beta, "decay": self.decay, "a": a, "b": b}
        return {name: apart(x, 3) for name, x in given.items() if x is not None}


def decayed(part: Part, decay: Tensor | None) -> Part:
    """A part after a token's decay. A decay per element of M leaves no mass to speak of: z is then NaN."""
    if decay is None:
        return part
    keep = torch.exp(decay)
    if decay.ndim == 2:
        return Part(keep * part.m, torch.full_like(part.z, torch.nan))
    return Part((keep[:, None] if decay.ndim == 1 else keep) * part.m, keep * part.z)


def write_part(old: Part, step: Step, share: Tensor, rule: Rule) -> Part:
    """An active part after one token: M = decay·M + e·beta·k (v − pred)ᵀ, pred = Mᵀk, or + e·beta·k vᵀ.

    Erase vectors replace −k and beta·k: M = decay·M + e·b (aᵀM) + e·beta·k vᵀ.
    """
    new = decayed(old, step.decay)
    read = old.m if rule.undecayed else new.m
    written = share * step.beta * step.k
    m = new.m + torch.outer(written, step.v)
    if rule.delta and step.erase is None:
        m = m - torch.outer(written, step.k @ read)
    if step.erase is not None:
        a, b = step.erase
        m = m + share * torch.outer(b, a @ read)
    return Part(m, new.z + written)


def residual_step(
    v: Tensor, k: Tensor, states: Tensor, share: Tensor, clip: float | None, gamma: Tensor, read: Sequence[bool]
) -> Tensor:
    """gamma · clip(v − Σ_n share_n · M_nᵀk): v ``[DV]``, k ``[D]``, states ``[N,D,DV]``, share ``[N]`` -> ``[DV]``."""
    left = v
    for m, e, there in zip(states, share, read, strict=True):
        left = left - e * (k @ m) if there else left
    return gamma * (left if clip is None else left.clamp(-clip, clip))


def renormalised(share: Tensor, active: Tensor) -> Tensor:
    """Shares ``[…,N]`` divided by their sum over the active parts: 1 for one alone, though it be 0; else 0 / 0 is 0."""
    total = torch.where(active, share, 0.0).sum(-1, keepdim=True)
    alone = active & (active.sum(-1, keepdim=True) == 1)
    return torch.where(alone, 1.0, torch.where(active, share / torch.where(total == 0, 1.0, total), 0.0))


def recall_sum(q: Tensor, states: Tensor, share: Tensor, read: Sequence[bool] | None = None) -> Tensor:
    """Σ_n share_n · M_nᵀq: q ``[D]``, states ``[N,D,DV]``, share ``[N]`` -> ``[DV]``; of the parts that are read."""
    every = zip(states, share, read or [True] * len(states), strict=True)
    return sum((e * (q @ m) for m, e, there in every if there), states.new_zeros(states.shape[-1]))


def recall_softmax(
    q: Tensor,
    states: Tensor,
    mass: Tensor,
    candidates: Sequence[int],
    bias: Tensor,
    kappa: Tensor,
    top: int | None,
    first: int,
    gain: Tensor,
) -> Tensor:
    """Attention whose tokens are states: softmax over candidates of kappa · q·ẑ + bias, ẑ = z/‖z‖ -> ``[DV]``.

    states ``[N,D,DV]`` of all levels in order, mass ``[N,D]``, bias and gain ``[N]``. With `top`, only the best few
    candidates stay, those among the `first` states (level 1) before all others; ties, scores no more than TIE apart,
    go to the one listed earlier. The gain multiplies what each state answers.
    """
    length = mass.norm(dim=-1, keepdim=True)
    score = kappa * ((mass / torch.where(length == 0, 1.0, length)) @ q) + bias
    ids = [*candidates] if top is None else _foremost([*candidates], score.tolist(), top, first)
    if not ids:
        return states.new_zeros(states.shape[-1])
    weights = torch.softmax(torch.stack([score[n] for n in ids]), dim=0)
    return recall_sum(q, states[ids], weights * gain[ids])


def _foremost(ids: list[int], score: list[float], top: int, first: int) -> list[int]:
    """The best few, those below ``first`` before all others, a later one only if it is more than a tie above."""
    found: list[int] = []
    while len(found) < min(top, len(ids)):
        left = [n for n in ids if n not in found]
        best, *others = [n for n in left if n < first] or left
        for n in others:
            best = n if score[n] > score[best] + TIE else best
        found.append(best)
    return found


def recall_slots(
    q: Tensor,
    values: Tensor,
    keys: Tensor,
    candidates: Tensor,
    bias: Tensor,
    kappa: Tensor,
    top: int | None,
    gain: Tensor,
) -> Tensor:
    """Attention whose tokens are the rows of states: softmax over rows r of the candidates of kappa · q·K_r + bias.

    values ``[N,R,DV]``, keys ``[N,R,D]``, candidates bool ``[N]``, bias and gain ``[N]``. With `top`, the best few
    rows stay, ties go to the lower part and row. The gain multiplies what a part's rows answer. As in GSA, arXiv
    2409.07146.
    """
    score = kappa * (keys @ q) + bias[:, None]
    rows = [(n, r) for n in range(keys.shape[0]) for r in range(keys.shape[1]) if candidates[n]]
    rows.sort(key=lambda at: -float(score[at].detach()))
    rows = rows if top is None else rows[:top]
    if not rows:
        return values.new_zeros(values.shape[-1])
    weights = torch.softmax(torch.stack([score[at] for at in rows]), dim=0)
    o = values.new_zeros(values.shape[-1])
    for (n, r), weight in zip(rows, weights, strict=True):
        o = o + weight * gain[n] * values[n, r]
    return o


def masses(written: Tensor, keep: Tensor, share: Tensor, active: Tensor, own: Tensor, freeze: bool) -> Tensor:
    """The decayed sum of what is written to one of a token's parts: ``[B,T,H,D]``.

    Decays are ``[B,T,H]``; e, whether a part is active, and 1 for the part that is asked for ``[B,T,H,N]``. Parts that
    rest keep still if ``freeze``, else they decay too.
    """
    held, found = written.new_zeros(*written.shape[:1], *share.shape[2:], written.shape[3]), []
    every = (x.unbind(1) for x in (written, keep, share, active, own))
    for row, faded, e, there, asked in zip(*every, strict=True):
        fresh = faded[..., None, None] * held
        held = torch.where(there[..., None], fresh + e[..., None] * row[:, :, None], held if freeze else fresh)
        found.append((asked[..., None] * held).sum(2))
    return torch.stack(found, 1) if found else written


def best(score: Tensor, top: int, first: int) -> Tensor:
    """A softmax over the best few in the last dim, the ``first`` ones before all others; ties go to the earlier."""
    count = score.shape[-1]
    order, worth = torch.arange(count, device=score.device), score.detach()
    kept = (order < min(first, top)).expand_as(score)
    for _ in range(min(top, count) - first):
        left = torch.where(kept | (order < first), -torch.inf, worth)
        number = torch.full_like(order[:1], first).expand(score.shape[:-1]).clone()
        foremost = torch.full_like(worth[..., 0], -torch.inf)
        for n in range(first, count):
            above = left[..., n] > foremost + TIE
            number, foremost = torch.where(above, n, number), torch.where(above, left[..., n], foremost)
        kept = kept | (order == number[..., None])
    return torch.softmax(torch.where(kept, score, -torch.inf), -1)
