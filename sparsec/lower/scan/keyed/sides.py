"""What asks a state and what is written to it, and the buffers between the programs.

With Γ the decays summed up per channel inside a chunk, *rows* x are faded from its start, *columns* y to its end:

    X_id = x_id e^{Γ_id}        Y_jd = y_jd e^{Γ_Cd − Γ_jd}        A_ij = Σ_d x_id y_jd e^{Γ_id − Γ_jd}

Rows are scaled queries and, where a rule reads before it writes, a (of the delta rule −k), from the undecayed
state with Γ_{i−1}. Columns are beta k and, where a rule erases along vectors of its own, b. From A:

    U = W M + V' v        W = (I − A_ab)⁻¹ X_a        V' = (I − A_ab)⁻¹ A_ak

are the answers to a; of the delta rule, whose b is beta k, V' leaves out the unit matrix, and U + v is written.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.scan.chunk.operands import operands
from sparsec.lower.scan.chunk.parts import CHUNKS, PADDED, Chunked, power
from sparsec.plan.states.scan_specs import Operand, Read
from sparsec.tile.language import Node, Tensor


@dataclass(frozen=True, slots=True)
class Side:
    """Vectors per token that meet others through decays.

    Attributes:
        name: "q", "a", "k" or "b".
        factor: of the tensor; gradients are those of the product.
        shifted: whether the token's own decay is left out.
        strict: whether a row does not see its own token.
        weighted: whether write strengths multiply it.
    """

    name: str
    operand: Operand
    factor: float = 1.0
    shifted: bool = False
    strict: bool = False
    weighted: bool = False


@dataclass(frozen=True, slots=True)
class Keyed:
    """A scan in this form; without ``read`` only its states.

    Attributes:
        solving: whether walks multiply with (I − A_ab)⁻¹ themselves, so that no W is stored; of the delta rule only.
    """

    own: Chunked
    read: Read
    solving: bool = False

    @property
    def tied(self) -> bool:
        """Whether what is erased is part of what is written: the delta rule."""
        return self.own.delta and self.own.writes.erase is None

    @property
    def erases(self) -> bool:
        """Whether vectors of their own say what is erased."""
        return self.own.writes.erase is not None

    @property
    def splits_asked(self) -> bool:
        """Whether queries ask the state as two halves: not beside given erase vectors, where that spills."""
        return not self.erases or self.own.writes.k.dtype == "float32" or self.own.schedule.exact

    @property
    def query(self) -> Side:
        """What the outputs ask."""
        return Side("q", self.read.q, self.read.scale, strict=self.read.when == "before")

    @property
    def asking(self) -> Side | None:
        """What a rule asks before it writes."""
        w = self.own.writes
        shifted = w.reads == "undecayed" and w.decay is not None
        if w.erase is not None:
            return Side("a", w.erase[0], shifted=shifted, strict=True)
        return Side("a", w.k, -1.0, shifted=shifted, strict=True) if self.own.delta else None

    @property
    def rows(self) -> list[Side]:
        """Queries, and what the rule asks."""
        return [self.query] + ([self.asking] if self.asking is not None else [])

    @property
    def columns(self) -> list[Side]:
        """What is written and what is erased."""
        w = self.own.writes
        written = Side("k", w.k, weighted=w.beta is not None)
        return [written] + ([Side("b", w.erase[1])] if w.erase is not None else [])

    def _scratch(self, name: str, dtype: str, *dims: int) -> Tensor:
        return Tensor(f"{self.own.name}_{name}", dtype, ("B", self.own.writes.heads, PADDED, *dims))

    def faded(self, side: Side) -> Tensor:
        """Rows faded from the start of the chunk, columns to its end."""
        return self._scratch(f"faded_{side.name}", self.own.wide, power(self.own.writes.rows))

    def operands(self, x: Node) -> list[Node]:
        """What rows and columns are multiplied with, and these: rounded or, under exact schedules, sums of two."""
        return operands(x, self.own.writes, self.own.schedule.exact)

    def seen(self, column: Side) -> Tensor:
        """What queries see of a column of their chunk."""
        return self._scratch(f"seen_{column.name}", self.own.writes.half, self.own.chunk)

    def met(self, column: Side) -> Tensor:
        """What the rule's rows see of a column of their chunk; fp32."""
        return self._scratch(f"met_{column.name}", "float32", self.own.chunk)

    @property
    def totals(self) -> Tensor:
        """The decay over each chunk; fp32 ``[B,HKV,chunks,D]``."""
        own = self.own
        return Tensor(f"{own.name}_totals", "float32", ("B", own.writes.heads, CHUNKS, power(own.writes.rows)))

    @property
    def answers(self) -> Tensor:
        """W."""
        return self._scratch("answers", self.own.wide, power(self.own.writes.rows))

    @property
    def solved(self) -> Tensor:
        """(I − A_ab)⁻¹ − I."""
        return self.own.solved

    @property
    def passed(self) -> Tensor:
        """V'."""
        return self._scratch("passed", self.own.writes.half, self.own.chunk) if self.erases else self.own.solved

    def scratch(self) -> list[Tensor]:
        """All of them."""
        found = [self.faded(s) for s in (*self.rows, *self.columns)] + [self.seen(s) for s in self.columns]
        found.append(self.totals)
        if self.asking is not None:
            found += [self.met(s) for s in self.columns] + [self.answers] * (not self.solving) + [self.solved]
        return found + [self.passed] * self.erases
