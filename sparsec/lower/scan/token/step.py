"""One token: a program reads its state, fades and writes it, answers, and puts it back where it came from.

The first token is worked out ahead of the loop over the others, so that what it brings is on its way while the state
is: a step of one token takes the time in which its states are read and written.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scan.cell import Cell, cell, grid, parameters, states_shape
from sparsec.lower.scan.token import sums
from sparsec.lower.scan.token.forward import answers, query, readers, surprise
from sparsec.lower.scan.token.visit import Token, token
from sparsec.plan.states.scan_specs import Scan
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule

ORDER = "step"
"""The loop order of a schedule for few tokens per call."""


def lower(spec: Scan, schedule: Schedule) -> Lowered:
    """As the token recurrence, of any number of tokens; parts of a bank meet all of them."""
    added, scratch = sums.sums(spec.name, spec.writes, [sums.answered(r) for r in spec.reads], schedule)
    return Lowered((Step(_program(spec, schedule), schedule), *added), tuple(scratch))


def _program(spec: Scan, schedule: Schedule) -> Program:
    with tile.Builder() as builder:
        own = cell(builder, spec.writes, schedule)
        first = _token(spec, own, schedule, tile.const(0), own.first(), bounded=True)

        def visit(at: Node, old: Node) -> Sequence[Node]:
            return [_token(spec, own, schedule, at, old)]

        (last,) = tile.loop(1, tile.param(spec.writes.length), 1, [first], visit)
        if spec.final is not None:
            final = Tensor(spec.final, "float32", states_shape(spec.writes))
            own.keep(final, own.batch, own.part, own.head, value=last, part=1)
        tensors = list(own.tensors.values())
        return builder.program(spec.name, tensors, parameters(spec.writes), grid(spec.writes, schedule))


def _token(spec: Scan, own: Cell, schedule: Schedule, at: Node, old: Node, bounded: bool = False) -> Node:
    """The state after a token, whose queries are answered."""
    return after(spec, own, schedule, token(own, at, bounded), old)


def after(spec: Scan, own: Cell, schedule: Schedule, now: Token, old: Node) -> Node:
    """The state after what a token brings, whose queries are answered."""
    for read in spec.reads:
        for head in readers(own, read):
            query(now, read, head)  # on its way with the rest of what the token brings
    faded = now.faded(old)
    answer = now.answer(old, faded)
    new = now.written(faded, answer)
    answers(now, spec, faded, new, schedule)
    surprise(now, spec, answer, schedule)
    return new
