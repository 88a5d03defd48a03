"""The token recurrence: one program per batch entry, state head and tile of columns walks over all tokens in order.

Right for every rule, and the fast form on a CPU; a GPU has too few states to be kept busy by it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scalars import add, mul
from sparsec.lower.scan.cell import Cell, Token, cell, grid, parameters, place_of, states_shape, token, vector
from sparsec.plan.scan_specs import Read, Scan
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: Scan, schedule: Schedule) -> Lowered:
    """q, k ``[B,N,·,D]``, v ``[B,N,HKV,DV]``, beta, log-decays -> outputs ``[B,N,H,DV]`` and final states."""
    return Lowered((Step(_program(spec, schedule), schedule),))


def _program(spec: Scan, schedule: Schedule) -> Program:
    with tile.Builder() as builder:
        own = cell(builder, spec.writes, schedule)

        def visit(at: Node, old: Node) -> Sequence[Node]:
            now = token(own, at)
            faded = now.faded(old)
            new = now.written(faded, now.answer(old, faded))
            answers(now, spec, faded, new)
            return [new]

        (last,) = tile.loop(0, tile.param(spec.writes.length), 1, [own.first()], visit)
        if spec.final is not None:
            own.keep(Tensor(spec.final, "float32", states_shape(spec.writes)), own.batch, 0, own.head, value=last)
        tensors = list(own.tensors.values())
        return builder.program(spec.name, tensors, parameters(spec.writes), grid(spec.writes, schedule))


def answers(now: Token, spec: Scan, faded: Node, new: Node) -> None:
    """What every read is told by a token's states."""
    for read in spec.reads:
        _answer(now, read, new if read.when == "after" else faded)


def _answer(now: Token, read: Read, state: Node) -> None:
    """o = scale · Mᵀq of every head that reads the state."""
    own = now.cell
    for head in readers(own, read):
        q = query(now, read, head)
        out = mul(read.scale, tile.reduce("sum", mul(q, state), own.rows))
        tensor, index, limits = place_of(own, read.out, read.heads, False, True, now.bounded)
        tile.store(
            own.tensor(tensor), own.batch, now.at, head, *index, value=tile.cast(out, read.out.dtype), bounds=limits
        )


def query(now: Token, read: Read, head: Node) -> Node:
    """The query [d] of one of the heads of what is read."""
    asked = tile.apply(Fn.TRUNCDIV, head, read.sharers)
    return vector(now.cell, read.q, read.query_heads or read.heads, now.at, asked, True, False, now.bounded)


def readers(own: Cell, read: Read) -> list[Node]:
    """The query heads that read a state."""
    group = read.heads // own.writes.heads
    return [add(mul(own.head, group), n) for n in range(group)]
