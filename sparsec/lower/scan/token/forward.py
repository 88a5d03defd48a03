"""The token recurrence: one program per batch entry, state and tile of columns walks over its tokens in order.

Right for every rule, and the fast form on a CPU; a GPU has too few states to be kept busy by it. The states of a bank
with a route walk over the tokens that chose them (order "token"), or over all tokens (order "mask").
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scalars import add, mul
from sparsec.lower.scan.cell import Cell, cell, grid, parameters, states_shape, vector
from sparsec.lower.scan.runs import Runs
from sparsec.lower.scan.token import sums
from sparsec.lower.scan.token.visit import Token, steps, token
from sparsec.plan.states.scan_specs import Read, Scan, Writes
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule, ScheduleError


def lower(spec: Scan, schedule: Schedule) -> Lowered:
    """q, k ``[B,N,·,D]``, v ``[B,N,HKV,DV]``, beta, log-decays -> outputs ``[B,N,H,DV]`` and final states."""
    runs = turned(spec.name, spec.writes, schedule)
    found = [sums.answered(r) for r in spec.reads]
    found += [sums.surprised(spec)] if spec.surprise is not None else []
    added, scratch = sums.sums(spec.name, spec.writes, found, schedule)
    ahead = runs.steps(schedule) if runs is not None else []
    held = runs.scratch() if runs is not None else []
    return Lowered(
        (*ahead, Step(_program(spec, schedule, runs), schedule), *added),
        (*held, *scratch),
        runs.params() if runs is not None else (),
    )


def turned(name: str, w: Writes, schedule: Schedule, align: int = 1) -> Runs | None:
    """The route turned around; None where programs walk over all tokens.

    Raises ScheduleError for parts that decay at rest: they are met by every token.
    """
    if w.route is None or schedule.order == "mask":
        return None
    if not w.route.freeze:
        raise ScheduleError("parts that rest decay with every token; use order 'mask'")
    return Runs(name, w.route, w.length, align)


def _program(spec: Scan, schedule: Schedule, runs: Runs | None) -> Program:
    with tile.Builder() as builder:
        own = cell(builder, spec.writes, schedule, runs)

        def visit(number: Node, old: Node) -> Sequence[Node]:
            now = token(own, number)
            faded = now.faded(old)
            answer = now.answer(old, faded)
            new = now.written(faded, answer)
            answers(now, spec, faded, new, schedule)
            surprise(now, spec, answer, schedule)
            return [new]

        (last,) = tile.loop(0, steps(own), 1, [own.first()], visit)
        if spec.final is not None:
            final = Tensor(spec.final, "float32", states_shape(spec.writes))
            own.keep(final, own.batch, own.part, own.head, value=last, part=1)
        tensors = list(own.tensors.values())
        return builder.program(spec.name, tensors, parameters(spec.writes, runs), grid(spec.writes, schedule))


def answers(now: Token, spec: Scan, faded: Node, new: Node, schedule: Schedule) -> None:
    """What every read is told by a token's states."""
    for read in spec.reads:
        _answer(now, read, new if read.when == "after" else faded, schedule)


def surprise(now: Token, spec: Scan, answer: Node | None, schedule: Schedule) -> None:
    """What a delta rule writes, where that is asked for."""
    if spec.surprise is not None:
        assert answer is not None
        value, live = add(now.v, answer), now.visit.live
        value = value if live is None else mul(live, value)  # a token without parts surprises nobody
        sums.put(now, sums.surprised(spec), now.cell.head, value, schedule)


def _answer(now: Token, read: Read, state: Node, schedule: Schedule) -> None:
    """o = scale · Mᵀq, or Mq, of every head that reads the state, times e where that is asked for."""
    own, target = now.cell, sums.answered(read)
    for head in readers(own, read):
        over = own.cols if read.turned else own.rows
        out = mul(read.scale, tile.reduce("sum", mul(query(now, read, head), state), over))
        if read.weighed and now.visit.share is not None:
            out = mul(now.visit.share, out)
        sums.put(now, target, head, out, schedule)


def query(now: Token, read: Read, head: Node) -> Node:
    """The query [d], or [e] of what is turned, of one of the heads of what is read."""
    asked = tile.apply(Fn.TRUNCDIV, head, read.sharers)
    heads, turned = read.query_heads or read.heads, read.turned
    return vector(now.cell, read.q, heads, now.at, asked, not turned, turned, now.bounded)


def readers(own: Cell, read: Read) -> list[Node]:
    """The query heads that read a state."""
    group = read.heads // own.writes.heads
    return [add(mul(own.head, group), n) for n in range(group)]
