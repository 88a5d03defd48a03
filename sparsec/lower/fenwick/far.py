"""What queries get through the blocks before their chunk, where transitions are numbers, all chunks side by side.

    dX = Σ_j scale gate_j f_j e^Γ dO S_jᵀ            dgate_j = scale f_j e^Γ q·(dO S_jᵀ)

with S_j the blocks that a chunk reads and f_j the decay since they ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparsec.lower.fenwick.back import Back
from sparsec.lower.fenwick.frame import Frame
from sparsec.lower.fenwick.outputs import Reader
from sparsec.lower.fenwick.rungs import edges
from sparsec.lower.fenwick.visits import nearest_first, unread
from sparsec.lower.scalars import add, mul
from sparsec.lower.scan.chunk.parts import CHUNKS, Chunk, power_of_two
from sparsec.lower.scan.chunk.state import axes
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor


def lower(b: Back) -> Program:
    """One (chunk, head, batch) per grid point."""
    own, rungs = b.own, b.rungs
    with tile.Builder() as builder:
        chunk = Chunk(own, tile.program_id(2), tile.program_id(1), tile.program_id(0))
        a = axes(builder, own, "cnde")
        f = Frame(b, Reader(rungs, chunk, a, builder.axis("f", a.dims.size), builder.axis("t", own.chunk)))
        total, gains = _read(f)
        row, tokens = tile.iota(a.dims), chunk.token(a.queries)
        value = tile.cast(total, b.pull.dtype)
        tile.store(b.pull, chunk.batch, chunk.head, tokens, row, value=value, bounds=edges(b.pull, [row]))
        if b.learns_decay:
            tile.store(b.gained, chunk.batch, chunk.head, tokens, value=gains)
        inputs = [rungs.queries, rungs.gate, b.grad_out, *([own.sums] * own.decays), *rungs.carried()]
        grid = (tile.param(CHUNKS), own.writes.heads, tile.param("B"))
        return own.program(builder, "far", [*inputs, *tensors(b), *f.tensors], grid)


def tensors(b: Back) -> list[Tensor]:
    """What it leaves."""
    return [b.pull] + [b.gained] * b.learns_decay


def _read(f: Frame) -> tuple[Node, Node]:
    """dX ``[c,d]``, and what its rows gain ``[c]``; weights' gradients are stored."""
    b, a, rungs, chunk = f.b, f.axes, f.b.rungs, f.chunk
    zero, none = tile.full(0.0, a.queries, a.dims), tile.full(0.0, a.queries)
    queries, answered = tile.cast(f.at.queries(), "float32"), asked(f)

    def read(here: Node, passed: Node, total: Node, gains: Node) -> Sequence[Node]:
        answer = mul(answered(here), b.scale)
        if b.own.decays:
            answer = mul(answer, power_of_two(add(chunk.sums(a.queries), passed)))
        slope = tile.reduce("sum", mul(queries, answer), a.dims)
        weight = rungs.weight(chunk, a.queries, add(here, rungs.inner))
        gained = mul(slope, weight)
        keep(here, slope, tile.reduce("sum", gained, a.queries))
        return [f.at.next(passed, here), add(total, mul(answer, weight)), add(gains, gained)]

    def keep(level: Node, slope: Node, gained: Node) -> None:
        f.gate(add(level, rungs.inner), slope)
        if b.learns_decay:
            tile.store(b.gains, chunk.batch, chunk.head, level, chunk.number, value=gained)

    _, total, gains = nearest_first(rungs, chunk, [f.at.passed(), zero, none], read)
    unread(rungs, chunk, lambda level: keep(level, none, tile.const(0.0)))
    f.tensors += [b.gains] * b.learns_decay
    return total, gains


def asked(f: Frame) -> Callable[[Node], Node]:
    """What gives dO S_jᵀ ``[c,d]`` of a level; dO is loaded once where a tile has all columns."""
    a = f.axes
    once = [f.grad_out(*f.column(tile.const(0)))] if f.b.own.tiles == 1 else []

    def of_level(level: Node) -> Node:
        def visit(number: Node, total: Node) -> Sequence[Node]:
            column, limit = f.column(number)
            do = once[0] if once else f.grad_out(column, limit)
            return [f.dot(do, f.at.state(level, column), a.columns, total)]

        zero = tile.full(0.0, a.queries, a.dims)
        return visit(tile.const(0), zero)[0] if once else tile.loop(0, f.b.own.tiles, 1, [zero], visit)[0]

    return of_level
