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
    """A bank whose parts are levels; every token is read in all of them.

    Attributes:
        first: the levels before the first token ``[B,L,H,D,DV]``; level 0 is always empty then.
        offset: the position of that token.
    """

    first: Tensor | None = None
    offset: int = 0

    def recall(self, q: Tensor, gate: Tensor) -> Tensor:
        """Σ_l gate_l · M_lᵀq: q ``[B,T,H,D]``, gate ``[B,T,H,L]`` -> ``[B,T,H,DV]``."""
        self._refuse_short(gate.shape[3])
        if self.by_chunk and self._begins_empty and not (self.rule.undecayed and self._erases):
            nothing = q @ self._nothing
            return sum((self._level(n, q, gate[..., n]) for n in range(self.needed)), nothing)
        group = q.shape[2] // self.k.shape[2]
        asked = (gate[..., None] * q[..., None, :])[..., : self.needed, :]  # [B,T,H,L,D]
        return torch.einsum("bthld,bthlde->bthe", asked, self.levels.repeat_interleave(group, dim=2))

    @property
    def needed(self) -> int:
        """Levels that the tokens have."""
        end = self.offset + self.k.shape[1]
        return (end - 1).bit_length() + 1 if end else 0

    @property
    def _begins_empty(self) -> bool:
        return self.by_chunk and not self.offset

    @property
    def _erases(self) -> bool:
        return self.rule.delta or self.erase is not None

    @property
    def _nothing(self) -> Tensor:
        return self.v.new_zeros(self.k.shape[3], self.v.shape[3])

    def _refuse_short(self, levels: int) -> None:
        if self.needed > levels:
            tokens = self.offset + self.k.shape[1]
            raise OracleError(f"recall: {tokens} tokens have {self.needed} levels, {levels} are declared; declare more")

    @property
    def levels(self) -> Tensor:
        """Every level after every token's write, before its carry ``[B,T,H,L,D,DV]``."""
        return self._climbed[0]

    @cached_property
    def last(self) -> Tensor:
        """The levels after the last token's carry ``[B,L,H,D,DV]``."""
        return self._climbed[1].transpose(1, 2)

    @cached_property
    def _climbed(self) -> tuple[Tensor, Tensor]:
        batch, _, heads = self.k.shape[:3]
        each = [[self._climb(b, h) for h in range(heads)] for b in range(batch)]
        levels = torch.stack([torch.stack([one[0] for one in row], 1) for row in each])
        return levels, torch.stack([torch.stack([one[1] for one in row]) for row in each])

    def _climb(self, b: int, h: int) -> tuple[Tensor, Tensor]:
        """One head's levels over its tokens ``[T,L,D,DV]``, and those that are left ``[L,D,DV]``."""
        zero, one = self._nothing, self.v.new_ones(())
        held = self._held(b, h)
        found = []
        for t in range(self.k.shape[1]):
            step = self._step(b, t, h)
            unwritten = replace(step, v=torch.zeros_like(step.v))
            held = {n: write_part(part, unwritten, one, self.rule) for n, part in held.items()}
            held[0] = write_part(Part(zero, zero[:, 0]), step, one, self.rule)
            found.append(torch.stack([held[n].m if n in held else zero for n in range(self.needed)]))
            carry = _trailing_zeros(self.offset + t + 1)
            merged = torch.stack([held.pop(n).m if n in held else zero for n in range(carry + 1)]).sum(0)
            held[carry + 1] = Part(merged, zero[:, 0])
        count = max(self.parts, self.needed)
        left = torch.stack([held[n].m if n in held else zero for n in range(count)])[: self.parts]
        return torch.stack(found) if found else zero.expand(0, self.needed, *zero.shape), left

    @property
    def parts(self) -> int:
        """Levels of the bank."""
        return self.needed if self.first is None else self.first.shape[1]

    def _held(self, b: int, h: int) -> dict[int, Part]:
        """The levels before the first token that hold something: those of the bits of its position."""
        if self.first is None:
            return {}
        live = [n for n in range(1, self.parts) if self.offset >> n - 1 & 1]
        return {n: Part(self.first[b, n, h], self._nothing[:, 0]) for n in live}

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
