"""Scores of a step's candidates, whose heads are the rows of a tile: ranked where they are, or left as logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sparsec.lower import softmax
from sparsec.lower.decode import logits as decode_logits
from sparsec.lower.decode import portion, rank
from sparsec.lower.gathered.gpu import row_tile
from sparsec.lower.rows import Rows, one_token
from sparsec.lower.scalars import add, most, mul, sub
from sparsec.lower.select import candidates
from sparsec.lower.select.frame import Frame, params, sharing
from sparsec.plan.specs import Selector
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: Selector, schedule: Schedule) -> Program:
    """One (token, unit and split, sequence) per grid point scores its share of the summaries."""
    found, share = portion.buffers(spec, schedule.splits), sharing(spec)
    with tile.Builder() as builder:
        f = portion.framed(builder, spec, schedule)
        size = row_tile(share) if schedule.split_dims else share
        limit = add(f.head, share) if share < size else None
        rows = one_token(builder.axis("r", size), tile.program_id(0), f.head, limit)
        place = rows.place(f.batch)
        queries = [tile.load(f.tensors[spec.q], *place, d.index(), bounds=rows.bounds) for d in f.dims]
        walk = _logits if spec.softmax else _ranked
        written = walk(builder, f, found, rows, queries)
        read = [f.tensors[spec.q], f.tensors[spec.keys], *([] if spec.softmax else portion.above(spec))]
        grid = portion.grid(spec, schedule.splits)
        return builder.program(f"{spec.name}_scores", [*read, *written], params(spec), grid)


def _logits(builder: tile.Builder, f: Frame, found: portion.Buffers, rows: Rows, queries: list[Node]) -> list[Tensor]:
    """Every head's base-two logits, and their log-sum-exps over this share."""
    spec, f = f.spec, replace(f, env={**f.env, "i": add(tile.program_id(0), tile.param("q_offset"))})
    first, stop = portion.own(
        f, portion.candidates_of(spec, spec.key_length, visible=True), tile.param(spec.key_length)
    )

    def visit(at: Node, top: Node, total: Node) -> Sequence[Node]:
        number = add(mul(at, f.schedule.block), tile.iota(f.keys))
        logits = mul(candidates.products(f, queries, number), spec.scale * softmax.LOG2E)
        logits = tile.apply(Fn.WHERE, candidates.shown(f, number), logits, softmax.HIDDEN)
        where = decode_logits.place(spec, f.batch, rows.token, rows.head, number)
        bounds = decode_logits.bounds(spec, tile.param(spec.key_length), rows.bounds.get(2))
        tile.store(found.raw, *where, value=logits, bounds=bounds, evict="last")
        high = most(top, tile.reduce("max", logits, f.keys))
        more = tile.reduce("sum", tile.apply(Fn.EXP2, sub(logits, high)), f.keys)
        return [high, add(mul(total, tile.apply(Fn.EXP2, sub(top, high))), more)]

    inits = [tile.full(softmax.HIDDEN, rows.axis), tile.full(0.0, rows.axis)]
    value = _log(*tile.loop(first, stop, 1, inits, visit, f.schedule.stages))
    tile.store(found.sums, *rows.place(f.batch, portion.split(f.schedule.splits)), value=value, bounds=rows.bounds)
    return [found.raw, found.sums]


def _ranked(builder: tile.Builder, f: Frame, found: portion.Buffers, rows: Rows, queries: list[Node]) -> list[Tensor]:
    """The best of this share's candidates, by the scores of the group."""
    length = tile.param(f.spec.key_length)

    def scores(number: Node) -> Node:
        units = _grouped(f, rows, candidates.products(f, queries, number))
        return tile.apply(Fn.WHERE, tile.apply(Fn.LT, number, length), units, softmax.HIDDEN)

    rank.keep(builder, f, found, scores)
    return [found.best]


def _grouped(f: Frame, rows: Rows, logits: Node) -> Node:
    """The heads' scores as one, scaled."""
    spec, share = f.spec, sharing(f.spec)
    if spec.group == "max":
        there = tile.apply(Fn.LT, rows.head, add(f.head, share))
        units = tile.reduce("max", tile.apply(Fn.WHERE, there, logits, softmax.HIDDEN), rows.axis)
    else:
        units = tile.reduce("sum", logits, rows.axis)  # rows without a head are zero
    factor = spec.scale / (share if spec.group == "mean" else 1)
    return units if factor == 1.0 else mul(units, factor)


def _log(top: Node, total: Node) -> Node:
    """The log-sum-exp of a share; hidden where it saw nothing."""
    empty = tile.apply(Fn.LE, top, softmax.NOTHING)
    found = add(top, tile.apply(Fn.LOG2, tile.apply(Fn.WHERE, empty, 1.0, total)))
    return tile.apply(Fn.WHERE, empty, softmax.HIDDEN, found)
