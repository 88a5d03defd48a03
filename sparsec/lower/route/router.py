"""A router's scores, their softmax over all parts, and the best parts one after another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

from sparsec.lower import parents
from sparsec.lower.route import parts
from sparsec.lower.route.parts import BLOCK, Tokens
from sparsec.lower.scalars import add, both, mul, nan_highest, sub
from sparsec.plan.states.route_specs import Router
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule

NONE = 2**31 - 1
"""Above every part."""
FEW = "few"
"""The loop order of a schedule for a few tokens."""
WIDE = 512
"""Columns of a block of a program of a few tokens."""
HELD, THREADS = 256, 32
"""Elements that a thread of such a program holds before it multiplies any, and threads of a warp."""


def lower(spec: Router, schedule: Schedule) -> Program:
    """One (tile of tokens, 1, batch) per grid point."""
    with tile.Builder() as builder:
        first = mul(tile.program_id(0), schedule.rows)
        at = parts.tokens(builder, spec, schedule, first, tile.program_id(2))
        by = _products if schedule.order == FEW else _scores
        scores = mul(by(builder, at, schedule), spec.scale)
        shares = _softmax(at, scores)
        tile.store(parts.shares(spec), at.batch, at.token, 0, at.part, value=shares, bounds=at.limits)
        tensors = [parts.x(spec), parts.rows(spec), parts.shares(spec), parts.ids(spec)]
        left, ranked = both(at.real, _children(at)), nan_highest(scores)
        chosen, worth = list[Node](), list[Node]()
        for _ in range(spec.slots):
            best, here = _best(at, ranked, left)
            chosen.append(best)
            worth.append(tile.reduce("sum", tile.apply(Fn.WHERE, here, shares, 0.0), at.parts))
            left = both(left, tile.apply(Fn.NE, at.part, best))
        _store(at, parts.ids(spec), [_id(spec, c) for c in chosen])
        if spec.weights is not None:
            weights = Tensor(spec.weights, "float32", ("B", spec.length, 1, spec.slots))
            _store(at, weights, _renormalised(worth) if spec.renormalise else worth)
            tensors.append(weights)
        if spec.within is not None:
            tensors += parents.tensors(spec.within, spec.length)
        return parts.program(builder, spec, spec.name, tensors, (parts.tiles(spec, schedule), 1, tile.param("B")))


def _scores(builder: tile.Builder, at: Tokens, schedule: Schedule) -> Node:
    """W x [m,n], column block by column block."""
    spec, dims = at.spec, builder.axis("d", BLOCK)

    def visit(block: Node, total: Node) -> Sequence[Node]:
        column, bound = parts.columns(spec, block, dims)
        limit: dict[int, tile.Value] = {1: tile.param(spec.length), **bound}
        x = tile.load(parts.x(spec), at.batch, at.token, 0, column, bounds=limit)
        own: dict[int, tile.Value] = {0: spec.parts, **{dim - 1: n for dim, n in bound.items()}}
        rows = tile.load(parts.rows(spec), at.part, 0, column, bounds=own)
        if x.dtype != rows.dtype:
            x, rows = tile.cast(x, "float32"), tile.cast(rows, "float32")
        return [tile.dot(x, rows, dims, total, schedule.precision)]

    return tile.loop(0, -(-spec.dim // BLOCK), 1, [tile.full(0.0, at.rows, at.parts)], visit)[0]


def _products(builder: tile.Builder, at: Tokens, schedule: Schedule) -> Node:
    """W x [m,n] of a few tokens, without products of tiles, which would have 16 of them at least.

    All of it is read before any is multiplied, where registers hold it: a step waits for memory once.
    """
    spec = at.spec
    dims = builder.axis("d", min(WIDE, 1 << (spec.dim - 1).bit_length()))

    def read(block: Node) -> tuple[Node, Node]:
        column, bound = parts.columns(spec, block, dims)
        limit: dict[int, tile.Value] = {1: tile.param(spec.length), **bound}
        x = tile.load(parts.x(spec), at.batch, at.token, 0, column, bounds=limit)
        own: dict[int, tile.Value] = {0: spec.parts, **{dim - 1: n for dim, n in bound.items()}}
        return x, tile.load(parts.rows(spec), at.part, 0, column, bounds=own)

    def product(x: Node, rows: Node) -> Node:
        return mul(tile.cast(x, "float32"), tile.cast(rows, "float32"))

    count = -(-spec.dim // dims.size)
    if count * dims.size * at.parts.size <= HELD * THREADS * schedule.warps:
        blocks = [read(tile.const(n)) for n in range(count)]
        return tile.reduce("sum", reduce(add, (product(*block) for block in blocks)), dims)

    def visit(block: Node, total: Node) -> Sequence[Node]:
        return [tile.apply(Fn.ADD, total, tile.reduce("sum", product(*read(block)), dims))]

    return tile.loop(0, count, 1, [tile.full(0.0, at.rows, at.parts)], visit)[0]


def _softmax(at: Tokens, scores: Node) -> Node:
    seen = tile.apply(Fn.WHERE, tile.apply(Fn.LT, at.part, at.spec.parts), scores, -math.inf)
    power = tile.apply(Fn.EXP, sub(seen, tile.reduce("max", seen, at.parts)))
    return tile.apply(Fn.DIV, power, tile.reduce("sum", power, at.parts))


def _children(at: Tokens) -> Node | None:
    """Parts whose parent was chosen one level up [m,n]."""
    within = at.spec.within
    if within is None:
        return None
    return parents.children(within, parents.listed(within, at.spec.length, at.batch, at.token, 0), at.part)


def _best(at: Tokens, scores: Node, left: Node) -> tuple[Node, Node]:
    """The lowest part with the best score of those left [m], NONE where there is none; and where it is [m,n]."""
    seen = tile.apply(Fn.WHERE, left, scores, -math.inf)
    best = tile.apply(Fn.EQ, seen, tile.reduce("max", seen, at.parts))
    number = tile.reduce("min", tile.apply(Fn.WHERE, both(best, left), at.part, NONE), at.parts)
    return number, tile.apply(Fn.EQ, at.part, number)


def _id(spec: Router, best: Node) -> Node:
    return tile.apply(Fn.WHERE, tile.apply(Fn.LT, best, spec.parts), best, -1)


def _renormalised(worth: Sequence[Node]) -> list[Node]:
    total = reduce(lambda a, b: tile.apply(Fn.ADD, a, b), worth)
    some = tile.apply(Fn.WHERE, tile.apply(Fn.LT, 0.0, total), total, 1.0)
    return [tile.apply(Fn.DIV, x, some) for x in worth]


def _store(at: Tokens, tensor: Tensor, values: Sequence[Node]) -> None:
    for slot, value in enumerate(values):
        tile.store(tensor, at.batch, at.token, 0, slot, value=value, bounds={1: tile.param(at.spec.length)})


def default(spec: Router, target: str) -> Schedule:
    """Tiles of 64 tokens."""
    if not target.startswith("triton"):
        return Schedule(rows=8, lanes=("n", "d"), split_dims=False)
    return Schedule(rows=64 if spec.parts <= 64 else 32, warps=4, stages=3, precision="ieee")


def few(spec: Router, found: Schedule, target: str) -> Schedule:
    """A schedule for a few tokens in place of a forward's: a program for each."""
    if not target.startswith("triton") or spec.parts > 64:
        return found
    return Schedule(order=FEW, rows=1, warps=8, stages=2, precision="ieee")


def space(spec: Router, target: str) -> dict[str, tuple[object, ...]]:
    """Tokens of a tile, warps and stages."""
    if not target.startswith("triton"):
        return {"rows": (4, 8, 16)}
    return {"rows": (16, 32, 64, 128), "warps": (2, 4, 8), "stages": (2, 3, 4)}
