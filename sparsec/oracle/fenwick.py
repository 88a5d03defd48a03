"""States of a Fenwick schedule: a ladder of levels per head, merged upwards like the carries of a binary counter.

Level l of token t holds the tokens s with bit_length(t xor s) = l; level 0 is the token itself. All levels fade and
erase as one; after token t the levels 0 … m, m the trailing zeros of t + 1, become level m + 1 (arXiv 2506.04761).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from sparsec.oracle import vector_states
from sparsec.oracle.states import Part, Written, write_part
from sparsec.oracle.values import OracleError

FORGOTTEN = float("-inf")


@dataclass(frozen=True)
class Ladder(Written):
    """A bank whose parts are levels; every token is read in all of them."""

    def recall(self, q: Tensor, gate: Tensor) -> Tensor:
        """Σ_l gate_l · M_lᵀq: q ``[B,T,H,D]``, gate ``[B,T,H,L]`` -> ``[B,T,H,DV]``."""
        self._refuse_short(gate.shape[3])
        if self.by_chunk and not (self.rule.undecayed and self._erases):
            nothing = q @ self._nothing
            return sum((self._level(n, q, gate[..., n]) for n in range(self.needed)), nothing)
        group = q.shape[2] // self.k.shape[2]
        asked = (gate[..., None] * q[..., None, :])[..., : self.needed, :]  # [B,T,H,L,D]
        return torch.einsum("bthld,bthlde->bthe", asked, self.levels.repeat_interleave(group, dim=2))

    @property
    def needed(self) -> int:
        """Levels that the tokens have."""
        tokens = self.k.shape[1]
        return (tokens - 1).bit_length() + 1 if tokens else 0

    @property
    def _erases(self) -> bool:
        return self.rule.delta or self.erase is not None

    @property
    def _nothing(self) -> Tensor:
        return self.v.new_zeros(self.k.shape[3], self.v.shape[3])

    def _refuse_short(self, levels: int) -> None:
        if self.needed > levels:
            tokens = self.k.shape[1]
            raise OracleError(f"recall: {tokens} tokens have {self.needed} levels, {levels} are declared; declare more")

    @cached_property
    def levels(self) -> Tensor:
        """Every level after every token's write, before its carry ``[B,T,H,L,D,DV]``."""
        batch, _, heads = self.k.shape[:3]
        each = [torch.stack([self._climb(b, h) for h in range(heads)], 1) for b in range(batch)]
        return torch.stack(each)

    def _climb(self, b: int, h: int) -> Tensor:
        """One head's levels over its tokens ``[T,L,D,DV]``."""
        zero, one = self._nothing, self.v.new_ones(())
        held: dict[int, Part] = {}
        found = []
        for t in range(self.k.shape[1]):
            step = self._step(b, t, h)
            unwritten = replace(step, v=torch.zeros_like(step.v))
            held = {n: write_part(part, unwritten, one, self.rule) for n, part in held.items()}
            held[0] = write_part(Part(zero, zero[:, 0]), step, one, self.rule)
            found.append(torch.stack([held[n].m if n in held else zero for n in range(self.needed)]))
            carry = _trailing_zeros(t + 1)
            merged = torch.stack([held.pop(n).m for n in range(carry + 1)]).sum(0)
            held[carry + 1] = Part(merged, zero[:, 0])
        return torch.stack(found) if found else zero.expand(0, self.needed, *zero.shape)

    def _level(self, level: int, q: Tensor, gate: Tensor) -> Tensor:
        """One level as a state of its own: forgotten every 2^level tokens, written in the first half of them."""
        t = torch.arange(self.k.shape[1], device=q.device)
        half = 1 << level >> 1
        later = (t & half != 0) if half else torch.ones_like(t, dtype=torch.bool)
        decay = torch.zeros_like(self.k[..., 0]) if self.decay is None else self.decay
        wide = (slice(None), *[None] * (decay.ndim - 2))
        decay = torch.where((t % max(2 * half, 1) == 0)[wide], FORGOTTEN, decay)
        v = self.v if not half else torch.where(later[:, None, None], 0.0, self.v)
        mine = {f.name: getattr(self, f.name) for f in fields(Written)} | {"v": v, "decay": decay}
        asked = torch.where(later[:, None], gate, 0.0)[..., None]
        return vector_states.recall(Written(**mine), q, asked, "after")


def _trailing_zeros(n: int) -> int:
    return (n & -n).bit_length() - 1
