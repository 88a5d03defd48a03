"""One token: a program reads its state, fades and writes it, answers, and puts it back where it came from.

There is no loop, so that what the token brings is on its way while the state is; all of a step's time is the state's.
"""

from __future__ import annotations

from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scan.cell import cell, grid, parameters, states_shape, token
from sparsec.lower.scan.token import answer
from sparsec.plan.scan_specs import Scan
from sparsec.tile import build as tile
from sparsec.tile.language import Program, Tensor
from sparsec.tile.schedule import Schedule

ORDER = "step"
"""The loop order of a schedule for one token per call."""


def lower(spec: Scan, schedule: Schedule) -> Lowered:
    """As the token recurrence, of N = 1."""
    return Lowered((Step(_program(spec, schedule), schedule),))


def _program(spec: Scan, schedule: Schedule) -> Program:
    with tile.Builder() as builder:
        own = cell(builder, spec.writes, schedule)
        old, now = own.first(), token(own, tile.const(0))
        faded = now.faded(old)
        new = now.written(faded, now.answer(old, faded))
        for read in spec.reads:
            answer(now, read, new if read.when == "after" else faded)
        if spec.final is not None:
            own.keep(Tensor(spec.final, "float32", states_shape(spec.writes)), own.batch, 0, own.head, value=new)
        tensors = list(own.tensors.values())
        return builder.program(spec.name, tensors, parameters(spec.writes), grid(spec.writes, schedule))
