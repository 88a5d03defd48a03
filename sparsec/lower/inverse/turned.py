"""Lists turned around for kernels that walk the queries of a chunk: the programs before, buffers and parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sparsec.lower.inverse import index as inverse
from sparsec.lower.inverse import shares
from sparsec.lower.inverse import steps as inverse_steps
from sparsec.lower.lowered import Scratch, Step
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.expr import Expr
from sparsec.tile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Turned:
    """A complete inverse cut into shares, as parts of a ``Lowered``."""

    steps: tuple[Step, ...]
    scratch: tuple[Scratch, ...]
    params: tuple[tuple[str, Expr], ...]
    limits: tuple[tuple[str, Expr], ...]


def turned(spec: GatheredAttention, schedule: Schedule, wide: Schedule, step: int, splits: int = 1) -> Turned:
    """The inverse of the lists of ``spec`` in shares of a multiple of ``step`` choices.

    Args:
        schedule: of the kernel that walks the shares; ``wide`` of programs with a few warps, from which follow those of
            a single one.
        splits: as in ``shares.params``.
    """
    found, narrow = inverse.inverse(spec, schedule, complete=True), replace(wide, warps=1)
    tally, offsets, fill = inverse_steps.programs(spec, schedule, complete=True)
    steps = (Step(tally, narrow), Step(offsets, wide), Step(fill, narrow), Step(shares.lower(spec, found), wide))
    scratch = (*inverse.scratch(spec, schedule, complete=True), *shares.scratch(spec, found))
    known = tuple((name, value) for name, value in inverse.params(spec, schedule, complete=True) if name != "WT")
    cut = shares.params(found, spec.chunk, step, splits)
    limits = (*inverse.limits(spec, schedule), *shares.limits(spec.chunk, splits))
    return Turned(steps, scratch, (*known, *cut), limits)
