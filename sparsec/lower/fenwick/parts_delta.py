"""What readers of transitions ask of a delta rule's chunks, all side by side; see ``tokens_delta``."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.fenwick import parts
from sparsec.lower.fenwick.back import Back
from sparsec.lower.fenwick.leaf import of_writes
from sparsec.lower.fenwick.parts import Parts
from sparsec.lower.fenwick.rule import Rule
from sparsec.lower.fenwick.rungs import column_of, edges
from sparsec.lower.fenwick.values_delta import Sums
from sparsec.lower.fenwick.walk import frame
from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk.operands import times
from sparsec.lower.scan.chunk.parts import CHUNKS
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program


def lower(b: Back) -> Program:
    """Gradients of F, T, K' and K" from those; one (chunk, head, batch) per grid point."""
    own, w, rungs = b.own, b.own.writes, b.rungs
    with tile.Builder() as builder:
        f = frame(builder, b)
        parts.store(f, _outside(Rule(f), Sums(*parts.left(f))))
        tensors = [rungs.queries, rungs.keys, *of_writes(rungs), b.grad_moves(0), b.pull, *b.sums]
        grid = (tile.param(CHUNKS), w.heads, tile.param("B"))
        return own.program(builder, "parts", [*tensors, *f.tensors], grid)


def _outside(at: Rule, s: Sums) -> Parts:
    """With what readers of the chunk's block, and the chunk's own reads, ask; dK' is stored on the way."""
    f, a, b = at.f, at.f.axes, at.f.b
    keys, ends, effective = f.at.keys(), at.ends(), tile.cast(f.at.effective(), b.own.writes.k.dtype)
    tiles, row = -(-a.dims.size // a.columns.size), tile.iota(a.dims)

    def visit(number: Node, grad: Node, solved: Node, ending: Node, whole: Node) -> Sequence[Node]:
        column = column_of(number, a.columns)
        moves, lifted = f.of_block(b.grad_moves(0), column), f.at.lifted(column)  # [d,e], [n,e]
        place = (f.chunk.batch, f.chunk.head, f.chunk.token(a.queries), column)
        pull = tile.load(b.pull, *place, bounds=edges(b.pull, [column]))
        lost = mul(tile.cast(lifted, "float32"), -1.0)
        written = f.dot(keys, moves, a.dims)
        written = mul(times(written, ends) or written, -1.0)  # dW [n,e]
        parts.lifted(f, column, sub(at.unsolve(written), f.dot(effective, pull, a.queries)))
        diagonal = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, row, column), tile.cast(moves, "float32"), 0.0)
        return [
            f.dot(pull, lost, a.columns, grad),
            f.dot(tile.rename(written, a.keys, f.at.middle), lifted, a.columns, solved),
            f.dot(lost, moves, a.columns, ending),
            add(whole, tile.reduce("sum", tile.reduce("sum", diagonal, a.columns), a.dims)),
        ]

    zero = [s.among, s.solved, s.ending, tile.const(0.0)]
    grad, solved, ending, whole = tile.loop(0, tiles, 1, zero, visit)
    return Parts(grad, at.of_solved(grad, solved), ending=at.solve(ending), whole=whole)
