"""The backward in this form under a schedule: its scratch beside that of all chunked backwards."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.scan.chunk.back import Back
from sparsec.lower.scan.chunk.parts import PADDED
from sparsec.lower.scan.keyed.sides import Keyed
from sparsec.tile.language import Tensor


@dataclass(frozen=True, slots=True)
class KeyedBack:
    """What all chunked backwards have, and the scan in this form."""

    back: Back
    keyed: Keyed

    @property
    def keeps_values(self) -> bool:
        """Whether the gradient of v is stored: it is asked for, or what a delta rule's answers solve."""
        return self.back.spec.grad_v is not None or self.keyed.tied

    @property
    def grad_answers(self) -> Tensor:
        """The gradient of what answers solve ``[B,HKV,tokens,DV]``."""
        w = self.keyed.own.writes
        return Tensor(f"{self.keyed.own.name}_grad_answers", w.half, ("B", w.heads, PADDED, w.cols))

    def scratch(self) -> list[Tensor]:
        """What is written beyond what the forward's programs write."""
        own = self.keyed.own
        found = [self.back.states, self.back.grad_states] + [self.back.surprises] * own.delta
        if self.keyed.tied and self.back.spec.grad_v is None:
            found.append(self.back.grad_values)
        found += [self.grad_answers] * self.keyed.erases
        return found + [self.back.grad_ends, self.back.grad_starts] * (own.splits > 1)
