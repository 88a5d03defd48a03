"""How the launches of a step follow each other where each may start while the one before ends.

The head of a chain waits before it reads anything, and lets others start only then: all that came before the chain has
ended. Every other launch waits too before it ends, so when it has waited, all launches before it have ended, not just
the last. So it may store what any of them read; and before it waits it may read what none of them writes.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

from sparsec.lower.lowered import Step
from sparsec.tile.chain import Chain
from sparsec.tile.language import Program, TileOp
from sparsec.tile.rewrite import accesses


def chained(steps: Sequence[Step], before: Set[str] | None) -> list[Step]:
    """Steps behind launches of their chain that wrote these tensors: the first is the head where there are none.

    Without a chain (None) they stay as they are.
    """
    if before is None:
        return list(steps)
    found, known = list[Step](), frozenset(before)
    for step in steps:
        ready = frozenset(t.name for t in step.program.tensors) - known
        found.append(replace(step, chain=Chain(ready) if known else Chain(head=True)))
        known |= written(step.program)
    return found


def written(program: Program) -> set[str]:
    """The tensors that a program stores."""
    return {access.tensor.name for node, access in accesses(program) if node.op is TileOp.STORE}


def loaded(program: Program) -> set[str]:
    """The tensors that a program loads."""
    return {access.tensor.name for node, access in accesses(program) if node.op is TileOp.LOAD}
