"""What a lowering returns: the programs of one kernel in launch order, and the scratch buffers between them."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.scalar.expr import Expr
from sparsec.tile.chain import Chain
from sparsec.tile.language import Program
from sparsec.tile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Scratch:
    """A buffer that only the kernel's own programs see; extents are expressions over the launch parameters."""

    name: str
    shape: tuple[Expr, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Step:
    """One program and the schedule under which it is printed.

    Attributes:
        flat: whether its rows know of no others and of no position, so that the rows of all documents may be one batch.
        also: steps of which this one makes all that they make, where one does the work of several; they are not run.
        chain: how it starts while the launch before ends; None where it starts after it.
    """

    program: Program
    schedule: Schedule
    flat: bool = False
    chain: Chain | None = None
    also: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Lowered:
    """The programs of a kernel.

    Attributes:
        params: launch parameters that the steps need beyond the spec's, as expressions over the spec's.
        limits: of params that may be larger for shorter lengths, something that is not, and never smaller.
    """

    steps: tuple[Step, ...]
    scratch: tuple[Scratch, ...] = ()
    params: tuple[tuple[str, Expr], ...] = ()
    limits: tuple[tuple[str, Expr], ...] = ()
