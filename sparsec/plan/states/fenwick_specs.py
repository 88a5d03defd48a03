"""Specs of matrix states on a Fenwick schedule: written like others, read in every level with a weight of its own.

Level l of token t is the state that the tokens s with bit_length(t xor s) = l would leave alone, faded and erased by
all tokens since; level 0 is the token's own write. o_t = scale · Σ_l gate_tl · M_tlᵀq_t.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.plan.states.scan_specs import Operand, Read, Writes


@dataclass(frozen=True, slots=True)
class Ladder:
    """The outputs of states on a Fenwick schedule.

    Attributes:
        gate: fp32 ``[B,N,H,levels]``; N is at most 2^(levels − 1).
        initial, final: the levels before the first token, whose position is q_offset, and those after the last; fp32
            ``[B,levels,HKV,D,DV]``, of which level 0 is empty. None: all are empty, and nobody asks.
    """

    name: str
    writes: Writes
    read: Read
    gate: Operand
    levels: int
    dtype: str
    initial: str | None = None
    final: str | None = None


@dataclass(frozen=True, slots=True)
class LadderGrad:
    """Gradients of everything that a ladder reads, of which None is not asked for.

    Attributes:
        grad: that of the output ``[B,N,H,DV]``.
        grad_gate: fp32 ``[B,N,H,levels]``.
        grad_initial, grad_final: those of first levels, and of last ones, fp32 ``[B,levels,HKV,D,DV]``.
    """

    name: str
    forward: Ladder
    grad: Operand
    grad_q: Operand | None = None
    grad_k: Operand | None = None
    grad_v: Operand | None = None
    grad_beta: Operand | None = None
    grad_decay: Operand | None = None
    grad_gate: Operand | None = None
    grad_erase: tuple[Operand | None, Operand | None] = (None, None)
    grad_initial: str | None = None
    grad_final: str | None = None
