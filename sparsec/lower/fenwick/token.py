"""Levels token by token: a program holds some columns of all levels, and carries them as a counter does its bits.

After the token at position t, with m the trailing zeros of t + 1, level m + 1 is the sum of the levels 0 to m, which
are empty then. Right for every rule; positions count from q_offset.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scalars import add, mul
from sparsec.lower.scan.cell import Cell, cell, grid, parameters, place_of, vector
from sparsec.lower.scan.token.forward import readers
from sparsec.lower.scan.token.visit import Token, token
from sparsec.plan.states.fenwick_specs import Ladder
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: Ladder, schedule: Schedule) -> Lowered:
    """As the chunk form, from first levels to last ones ``[B,levels,HKV,D,DV]`` where those are given or asked for."""
    return Lowered((Step(_program(spec, schedule), schedule),))


def _program(spec: Ladder, schedule: Schedule) -> Program:
    with tile.Builder() as builder:
        own = cell(builder, spec.writes, schedule)

        def visit(at: Node, *held: Node) -> Sequence[Node]:
            now = token(own, at)
            levels = walked(now, held)
            _answer(spec, now, levels)
            return carried(add(tile.param("q_offset"), at), levels)

        held = tile.loop(0, tile.param(spec.writes.length), 1, first(spec, own), visit)
        if spec.final is not None:
            for n, level in enumerate((own.zero(), *held)):
                own.keep(levels_shape(spec, spec.final), own.batch, n, own.head, value=level)
        tensors = list(own.tensors.values())
        return builder.program(spec.name, tensors, parameters(spec.writes), grid(spec.writes, schedule))


def levels_shape(spec: Ladder, name: str) -> Tensor:
    """First or last levels."""
    w = spec.writes
    return Tensor(name, "float32", ("B", spec.levels, w.heads, w.rows, w.cols))


def first(spec: Ladder, own: Cell) -> list[Node]:
    """The levels above 0 before the first token."""
    if spec.initial is None:
        return [own.zero()] * (spec.levels - 1)
    tensor, offset = levels_shape(spec, spec.initial), tile.param("q_offset")
    held = [own.state(tensor, own.batch, n, own.head) for n in range(1, spec.levels)]
    return [full_block(offset, n, own.zero(), level) for n, level in enumerate(held, 1)]


def full_block(position: Node, n: int, empty: Node, level: Node) -> Node:
    """Level n before the token at a position; empty unless the position has the bit of its block."""
    there = tile.apply(Fn.AND, position, 1 << n - 1)
    return tile.apply(Fn.WHERE, tile.apply(Fn.LT, 0, there), level, empty)


def walked(now: Token, held: Sequence[Node]) -> list[Node]:
    """All levels after a token's write, from those above 0 before it."""
    return [mul(now.p, now.v), *(_kept(now, level) for level in held)]


def _kept(now: Token, level: Node) -> Node:
    """A level after a token, which fades and erases all of them and writes another."""
    faded = now.faded(level)
    answer = now.answer(level, faded)
    return faded if answer is None or now.erase is None else add(faded, mul(now.erase[1], answer))


def _answer(spec: Ladder, now: Token, levels: Sequence[Node]) -> None:
    """o = scale · (Σ_l gate_l M_l)ᵀq of every head that reads the levels."""
    own, read = now.cell, spec.read
    gate = own.tensor(Tensor(spec.gate.name, spec.gate.dtype, ("B", spec.writes.length, read.heads, spec.levels)))
    for head in readers(own, read):
        whole: Node = own.zero()
        for n, level in enumerate(levels):
            weight = tile.cast(tile.load(gate, own.batch, now.visit.at, head, n), "float32")
            whole = add(whole, mul(weight, level))
        asked = tile.apply(Fn.TRUNCDIV, head, read.sharers)
        query = vector(own, read.q, read.query_heads or read.heads, now.visit.at, asked, True, False, False)
        out = mul(read.scale, tile.reduce("sum", mul(query, whole), own.rows))
        tensor, index, limits = place_of(own, read.out, read.heads, False, True, False)
        place = (own.batch, now.visit.at, head, *index)
        tile.store(own.tensor(tensor), *place, value=tile.cast(out, read.out.dtype), bounds=limits)


def carried(position: Node, levels: Sequence[Node]) -> list[Node]:
    """The levels above 0 after the carry of the token at a position."""
    after = add(position, 1)
    full = tile.apply(Fn.AND, after, tile.apply(Fn.SUB, 0, after))  # 2^m
    found, below = list[Node](), levels[0]
    for n in range(1, len(levels)):
        stays = tile.apply(Fn.WHERE, tile.apply(Fn.LE, 1 << n, full), tile.full(0.0, *levels[n].axes), levels[n])
        found.append(tile.apply(Fn.WHERE, tile.apply(Fn.EQ, full, 1 << n - 1), below, stays))
        below = add(below, levels[n])
    return found
