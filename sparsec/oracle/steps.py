"""States that a token writes several times: one decay, then a write per step, then what is read."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from sparsec.oracle.states import Part, Step, Written, decayed, write_part


@dataclass(frozen=True)
class Stepped(Written):
    """A bank of one part whose tokens write ``len(later) + 1`` times.

    Attributes:
        later: what the steps after the first bring, the decays left out; the bank's own fields are the first step's.
    """

    later: tuple[Written, ...] = ()

    @classmethod
    def of(cls, bank: Written, steps: int) -> Stepped:
        """From k, v, beta and erase vectors with ``steps`` heads per state, those of the first step first."""
        split = [_step(bank, n, steps) for n in range(steps)]
        later = tuple(replace(one, decay=None) for one in split[1:])
        return cls(**{field.name: getattr(split[0], field.name) for field in fields(Written)}, later=later)

    def _head(self, b: int, h: int) -> tuple[Tensor, Tensor, Tensor]:
        """One head's bank over its tokens -> before, after ``[T,1,D,DV]`` and mass ``[T,1,D]``."""
        if not self.k.shape[1]:
            return Written._head(self, b, h)
        part, before, after = Part(self.initial[b, 0, h], torch.zeros_like(self.k[b, 0, h])), [], []
        mass, whole = list[Tensor](), self.v.new_ones(())
        for t in range(self.k.shape[1]):
            steps: list[Step] = [one._step(b, t, h) for one in (self, *self.later)]
            before.append(decayed(part, steps[0].decay).m)
            for step in steps:
                part = write_part(part, step, whole, self.rule)
            after.append(part.m)
            mass.append(part.z)
        return torch.stack(before)[:, None], torch.stack(after)[:, None], torch.stack(mass)[:, None]

    def rows(self) -> Written:
        """The quick form: a row per step ``[B,n·T,…]``, of which the first of each token alone fades."""
        every = (self, *self.later)

        def among(name: str) -> Tensor | None:
            own = [getattr(one, name) for one in every]
            return None if own[0] is None else torch.stack(own, 2).flatten(1, 2)

        decay = self.decay
        if decay is not None:
            decay = torch.stack([decay, *[torch.zeros_like(decay)] * len(self.later)], 2).flatten(1, 2)
        erase = None
        if self.erase is not None:
            pairs = [one.erase for one in every if one.erase is not None]
            a, b = (torch.stack(side, 2).flatten(1, 2) for side in zip(*pairs, strict=True))
            erase = a, b
        k, v, share, active = (x for name in ("k", "v", "share", "active") if (x := among(name)) is not None)
        return Written(self.initial, k, v, among("beta"), decay, erase, share, active, self.rule, self.by_chunk)


def _step(bank: Written, number: int, steps: int) -> Written:
    """What one step brings."""

    def own(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], steps, x.shape[2] // steps, *x.shape[3:])[:, :, number]

    erase = None if bank.erase is None else (own(bank.erase[0]), own(bank.erase[1]))
    beta = None if bank.beta is None else own(bank.beta)
    return replace(bank, k=own(bank.k), v=own(bank.v), beta=beta, erase=erase)
