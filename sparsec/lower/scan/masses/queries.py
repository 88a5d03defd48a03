"""The gradient of a mixture's queries: what each level makes of it, where the level has it, and other terms."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from sparsec.lower.pointwise.frame import columns
from sparsec.lower.scalars import add
from sparsec.lower.scan.masses.weights import Numbers
from sparsec.lower.scan.mixture.weights import Rows, finished
from sparsec.plan.states.mixture_specs import MixtureGrad
from sparsec.tile import build as tile
from sparsec.tile.language import Program
from sparsec.tile.schedule import Schedule


def lower(spec: MixtureGrad, levels: Sequence[Numbers], schedule: Schedule) -> Program:
    """The sum ``[B,N,H,D]``, rounded once; one (tile of tokens, head of candidates, batch) per grid point."""
    forward = spec.forward
    assert spec.grad_q is not None
    with tile.Builder() as builder:
        tensors = {t.name: t for x in levels for t in x.tensors}
        at = Rows(forward, builder.axis("m", schedule.rows), columns(builder, "d", forward.dim, schedule), tensors)
        for number in range(forward.group):
            head = at.head(number)
            found = [x.row(at, head) for x in levels]
            found += [at.row(*term, forward.heads, head) for term in spec.terms]
            at.keep_row(spec.grad_q, forward.heads, head, [reduce(add, each) for each in zip(*found, strict=True)])
        return finished(builder, spec.name, at)
