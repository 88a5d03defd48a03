"""Sums over value columns of a delta rule's gradients, all chunks side by side; see ``tokens_delta``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.fenwick import parts
from sparsec.lower.fenwick.back import Back
from sparsec.lower.fenwick.leaf import of_writes
from sparsec.lower.fenwick.parts import Parts
from sparsec.lower.fenwick.rule import Rule
from sparsec.lower.fenwick.walk import frame
from sparsec.lower.scalars import add, mul
from sparsec.lower.scan.chunk.operands import times
from sparsec.lower.scan.chunk.parts import CHUNKS
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program


def lower(b: Back) -> Program:
    """Sums over value columns, gradients of values and of weights; one (chunk, head, batch) per grid point."""
    own, w, rungs = b.own, b.own.writes, b.rungs
    with tile.Builder() as builder:
        f = frame(builder, b)
        at = Rule(f)
        columns = _columns(at)
        grad = _weighted(at, columns.among)
        if rungs.outer:
            parts.leave(f, grad, columns.solved, columns.ending)
        else:
            parts.store(f, _inside(at, grad, columns))
        tensors = [rungs.queries, rungs.keys, rungs.values, rungs.gate, b.grad_out, *of_writes(rungs)]
        tensors += [b.grad_states(0)] * bool(rungs.outer)
        grid = (tile.param(CHUNKS), w.heads, tile.param("B"))
        return own.program(builder, "values", [*tensors, *f.tensors], grid)


@dataclass(frozen=True, slots=True)
class Sums:
    """What is summed over value columns.

    Attributes:
        among: dO Vᵀ ``[c,n]``, in the end times scale and G.
        solved: dU Vᵀ ``[t,n]``.
        ending: V dSᵀ ``[n,d]``, without the factors of K".
    """

    among: Node
    solved: Node
    ending: Node


def _columns(at: Rule) -> Sums:
    """Over all value columns; dV is stored on the way."""
    f, a, b = at.f, at.f.axes, at.f.b
    effective = mul(f.at.effective(), b.rungs.among(f.chunk, a.queries, a.keys))
    weights = tile.cast(mul(effective, b.scale), b.own.writes.k.dtype)
    keys, ends = f.at.keys(), at.ends()

    def visit(number: Node, among: Node, solved: Node, ending: Node) -> Sequence[Node]:
        column, limit = f.column(number)
        do, v = f.grad_out(column, limit), f.values(column, limit)
        made, found = f.dot(weights, do, a.queries), [f.dot(do, v, a.columns, among), solved, ending]
        if b.rungs.outer:
            grad = f.of_block(b.grad_states(0), column)
            known = f.dot(keys, grad, a.dims)
            known = times(known, ends) or known
            made = add(made, at.unsolve(known))
            found[1] = f.dot(tile.rename(known, a.keys, f.at.middle), v, a.columns, solved)
            found[2] = f.dot(v, grad, a.columns, ending)
        f.wide(b.spec.grad_v, made, column, b.own.writes.cols, limit)
        return found

    square = tile.full(0.0, a.queries, a.keys), tile.full(0.0, f.at.middle, a.keys)
    return Sums(*tile.loop(0, b.own.tiles, 1, [*square, tile.full(0.0, a.keys, a.dims)], visit))


def _inside(at: Rule, grad: Node, s: Sums) -> Parts:
    """Where no chunk reads another, from G ⊙ scale dO Vᵀ."""
    return Parts(grad, at.of_solved(grad, s.solved))


def _weighted(at: Rule, among: Node) -> Node:
    """G ⊙ scale dO Vᵀ; the weights' gradients are stored."""
    f, a = at.f, at.f.axes
    given = mul(among, f.b.scale)
    f.gates_among(mul(given, f.at.effective()))
    return mul(given, f.b.rungs.among(f.chunk, a.queries, a.keys))
