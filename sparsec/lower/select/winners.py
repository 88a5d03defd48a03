"""Which summary each chosen block has its score from, where blocks are the maxima of theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from sparsec.lower.lowered import Scratch
from sparsec.lower.scalars import add, both, ceil_div, emit, least, most, mul
from sparsec.lower.select import children
from sparsec.lower.select.candidates import Scores, offsets, summary_scores
from sparsec.lower.select.frame import Frame, frame, params, sharing
from sparsec.lower.select.rounds import HIGHEST
from sparsec.plan.selection.parts import scores_alone
from sparsec.plan.specs import Selector
from sparsec.scalar.expr import constant, var
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def scratch(own: Selector, name: str) -> Scratch:
    """The summaries ``[B,TQ,HS,slots]``, -1 for slots without a block."""
    return Scratch(name, (var("B"), var("TQ"), constant(own.heads // sharing(own)), constant(own.slots)), "int32")


def schedule(of: Schedule) -> Schedule:
    """Every token has keys of its own, 16 at a time: twice the warps hold them."""
    found = replace(of, order=children.ORDER, splits=1)
    return replace(found, rows=16, block=16, warps=8, stages=1) if of.split_dims else found


def lower(own: Selector, name: str, schedule: Schedule) -> Program:
    """Lists of blocks -> lists of summaries, the first of equal ones."""
    assert own.pool is not None
    step, counts = offsets(own.pool)
    with tile.Builder() as builder:
        f = frame(builder, replace(scores_alone(own), parents=None), schedule)
        out = Tensor(name, "int32", ("B", "TQ", own.heads // sharing(own), own.slots))
        scores, first, width = summary_scores(f), min(counts), len(counts)

        def visit(slot: Node) -> Sequence[Node]:
            place, bounds = (f.batch, f.row, tile.program_id(1), slot), {1: tile.param("TQ")}
            unit = tile.load(f.tensors[own.indices], *place, bounds=dict(bounds), other=-1)
            start = add(mul(most(unit, 0), step), first)
            top, found = tile.full(-math.inf, f.rows), tile.full(-1, f.rows, dtype="int32")
            for at in range(0, width, schedule.block):
                local = add(tile.iota(f.keys), at)
                top, found = _better(f, scores, (local, width), add(start, local), top, found)
            chosen = tile.apply(Fn.WHERE, tile.apply(Fn.LE, 0, unit), found, -1)
            tile.store(out, *place, value=chosen, bounds=dict(bounds))
            return []

        tile.loop(0, own.slots, 1, [], visit)
        grid = (ceil_div(tile.param("TQ"), schedule.rows), tile.const(own.heads // sharing(own)), tile.param("B"))
        read = [f.tensors[own.q], f.tensors[own.keys], f.tensors[own.indices]]
        return builder.program(f"{name}_find", [*read, out], params(own), grid)


def _better(
    f: Frame, scores: Scores, local: tuple[Node, int], number: Node, top: Node, found: Node
) -> tuple[Node, Node]:
    """The highest score so far of every row's block and the summary that has it, with a tile of summaries more."""
    limit = tile.param(f.spec.key_length)
    there = both(tile.apply(Fn.LT, local[0], local[1]), tile.apply(Fn.LE, 0, number))
    there = both(there, tile.apply(Fn.LT, number, limit))
    if f.spec.visible is not None and not f.spec.softmax:
        there = both(there, emit(f.spec.visible, {**f.env, "c": number}))
    own = tile.apply(Fn.WHERE, there, scores(least(most(number, 0), limit)), -math.inf)
    high = tile.reduce("max", own, f.keys)
    each = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, own, high), number, HIGHEST)
    better = tile.apply(Fn.LT, top, high)
    return most(top, high), tile.apply(Fn.WHERE, better, tile.reduce("min", each, f.keys), found)
