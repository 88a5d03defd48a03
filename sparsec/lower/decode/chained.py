"""How the launches of a step follow each other where each may start while the one before ends.

The head of a chain waits before it reads anything, and lets others start only then: all that came before the chain has
ended. Every other launch waits too before it ends, so when it has waited, all launches before it have ended, not just
the last. So it may store what any of them read; and before it waits it may read what none of them writes.

A loop behind the second launch may need nothing but what the head writes (a window's keys, while others choose). Then
the second lets others start only once it has waited too: what the head wrote is there for all others, before they wait.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

from sparsec.lower.lowered import Step
from sparsec.tile.chain import Chain, early
from sparsec.tile.language import Program, TileOp
from sparsec.tile.regions import TOP, regions
from sparsec.tile.rewrite import accesses


def chained(steps: Sequence[Step], before: Set[str] | None) -> list[Step]:
    """Steps behind launches of their chain that wrote these tensors: the first is the head where there are none.

    Without a chain (None) they stay as they are.
    """
    if before is None:
        return list(steps)
    second = 0 if before else 1
    ahead = [(n, _after(steps[second:n], steps[n])) for n in range(second + 1, len(steps))]
    if any(_loops(steps[n].program, chain) for n, chain in ahead):
        first = chained(steps[: second + 1], before)
        first[-1] = replace(first[-1], chain=replace(first[-1].chain or Chain(), late=True))
        return [*first, *(replace(steps[n], chain=chain) for n, chain in ahead)]
    found, known = list[Step](), frozenset(before)
    for step in steps:
        ready = frozenset(t.name for t in step.program.tensors) - known
        found.append(replace(step, chain=Chain(ready) if known else Chain(head=True)))
        known |= written(step.program)
    return found


def _after(running: Sequence[Step], step: Step) -> Chain:
    """The chain of a launch that starts while these may still run, the first of which had waited."""
    changed = set[str]().union(*(written(s.program) for s in running))
    touched = {t.name for s in running for t in s.program.tensors}
    names = frozenset(t.name for t in step.program.tensors)
    return Chain(names - changed, free=frozenset(written(step.program) - loaded(step.program) - touched))


def _loops(program: Program, chain: Chain) -> bool:
    """Whether a loop runs before the wait."""
    found = regions(program)
    ready = early(found, chain)
    return any(n.op is TileOp.LOOP and n.serial in ready for n in found.nodes[TOP])


def written(program: Program) -> set[str]:
    """The tensors that a program stores."""
    return {access.tensor.name for node, access in accesses(program) if node.op is TileOp.STORE}


def loaded(program: Program) -> set[str]:
    """The tensors that a program loads."""
    return {access.tensor.name for node, access in accesses(program) if node.op is TileOp.LOAD}
