"""How far the scores of a list's columns are from the attention that they got: two walks over the list per token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsec.lower import softmax
from sparsec.lower.scalars import add, most, mul, sub
from sparsec.lower.select import dense_walk, index_rows
from sparsec.lower.select.dense_walk import Keys
from sparsec.lower.select.index_rows import Index
from sparsec.plan.selection.signal_specs import Divergence
from sparsec.plan.specs import Selector
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule

TERMS = 12
"""Of a series about 0, whose rest below 1/2 is under 1e-12 of it."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of one list, a tile at a time."""

    own: Index
    columns: int
    keys: Axis
    listed: Node
    indices: Tensor
    mass: Tensor | None = None
    kept: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """What it reads to score columns, and their masses."""
        read = [*index_rows.tensors(self.own.spec), self.indices] if self.kept is None else [self.kept]
        return [*read, *([self.mass] if self.mass is not None else [])]

    @property
    def span(self) -> tuple[Node | int, Node | int]:
        """The first and the past-last tile."""
        return 0, self.tiles

    def masses(self, n: Node) -> Node:
        """The attention of a tile's columns; -1 for columns that are not there."""
        assert self.mass is not None
        return self.read(self.mass, n, -1.0)

    @property
    def width(self) -> int:
        """Columns of a list."""
        return self.own.spec.slots * self.columns

    @property
    def tiles(self) -> int:
        """Tiles of a list."""
        return -(-self.width // self.keys.size)

    def scores(self, n: Node) -> Node:
        """The scores of a tile's columns, kept or worked out."""
        return self.own.scores(self.key(n)) if self.kept is None else self.read(self.kept, n)

    def place(self, n: Node) -> tuple[Node, ...]:
        """The indices of tile ``n`` in ``[B,TQ,HS,columns]``."""
        return (self.own.batch, self.own.token, self.listed, add(mul(n, self.keys.size), tile.iota(self.keys)))

    def key(self, n: Node) -> Node:
        """The keys or units that are scored; the one past the last where there is none."""
        *lead, column = self.place(n)
        slot = tile.apply(Fn.TRUNCDIV, column, self.columns)
        ids = tile.load(self.indices, *lead, slot, bounds={3: self.own.spec.slots}, other=-1)
        local = tile.apply(Fn.TRUNCMOD, column, self.columns) if self.columns > 1 else tile.const(0)
        found = add(mul(ids, self.columns), local)
        return tile.apply(Fn.WHERE, tile.apply(Fn.LE, 0, ids), found, tile.param(self.own.spec.key_length))

    def read(self, tensor: Tensor, n: Node, other: float = 0.0) -> Node:
        """Numbers of the columns."""
        return tile.load(tensor, *self.place(n), bounds={3: self.width}, other=other)


def begin(
    builder: tile.Builder,
    spec: Selector,
    columns: int,
    schedule: Schedule,
    mass: str | None = None,
    scores: str | None = None,
) -> Columns:
    """One (token, list, batch) per grid point."""
    index_rows.check(schedule)
    keys = builder.axis("n", schedule.block)
    listed = tile.program_id(1)
    own = index_rows.index(builder, spec, schedule, tile.program_id(2), tile.program_id(0), listed)
    lists: tuple[str | int, ...] = ("B", "TQ", index_rows.lists(spec), spec.slots)
    held, kept = (None if name is None else index_rows.listed(spec, columns, name) for name in (mass, scores))
    return Columns(own, columns, keys, listed, Tensor(spec.indices, "int32", lists), held, kept)


def finish(builder: tile.Builder, name: str, spec: Selector, tensors: Sequence[Tensor]) -> Program:
    """The program of what was built; tensors in launch order."""
    names = dict.fromkeys(["B", "TQ", "TK", "q_offset", spec.key_length, spec.block_length])
    grid = (tile.param("TQ"), tile.const(index_rows.lists(spec)), tile.param("B"))
    return builder.program(name, list(dict.fromkeys(tensors)), [(n, "int32") for n in names], grid)


def row(spec: Selector, name: str) -> Tensor:
    """One number per list."""
    return Tensor(name, "float32", ("B", "TQ", index_rows.lists(spec)))


def lower(spec: Divergence, schedule: Schedule) -> Program:
    """Loss, sum of the masses and log-sum-exp of the scores, all ``[B,TQ,HS]`` fp32."""
    with tile.Builder() as builder:
        c = columns(builder, spec, schedule)
        total, lse = _sums(c)
        loss = mul(_distance(c, total, lse), spec.coefficient)
        outs = [row(spec.index, name) for name in (spec.loss, spec.total, spec.lse)]
        for target, value in zip(outs, (loss, total, lse), strict=True):
            tile.store(target, c.own.batch, c.own.token, c.listed, value=value)
        return finish(builder, spec.name, spec.index, [*c.tensors, *outs])


def columns(builder: tile.Builder, spec: Divergence, schedule: Schedule) -> Columns | Keys:
    """What a loss compares: the columns of a list, or all keys."""
    if spec.dense is None:
        return begin(builder, spec.index, spec.columns, schedule, spec.mass, spec.scores)
    return dense_walk.keys(builder, spec.dense, spec.index, schedule)


def _sums(c: Columns | Keys) -> tuple[Node, Node]:
    """The sum of the masses, and the log-sum-exp of the scores of what exists (0 where nothing does)."""

    def visit(n: Node, total: Node, top: Node, power: Node) -> Sequence[Node]:
        found = c.masses(n)
        scores = tile.apply(Fn.WHERE, tile.apply(Fn.LE, 0.0, found), c.scores(n), softmax.HIDDEN)
        high = most(top, tile.reduce("max", scores, c.keys))
        more = tile.reduce("sum", tile.apply(Fn.EXP, sub(scores, high)), c.keys)
        kept = mul(power, tile.apply(Fn.EXP, sub(top, high)))
        return [add(total, tile.reduce("sum", most(found, 0.0), c.keys)), high, add(kept, more)]

    inits = [tile.const(0.0), tile.const(softmax.HIDDEN), tile.const(0.0)]
    total, top, power = tile.loop(*c.span, 1, inits, visit, c.own.schedule.stages)
    empty = tile.apply(Fn.LE, top, softmax.NOTHING)
    found = add(top, tile.apply(Fn.LOG, power))
    return total, tile.apply(Fn.WHERE, empty, 0.0, found)


def _distance(c: Columns | Keys, total: Node, lse: Node) -> Node:
    """The sum of p * (ln p - score + lse)."""
    whole = tile.apply(Fn.WHERE, tile.apply(Fn.LT, 0.0, total), total, 1.0)

    def visit(n: Node, sum_: Node) -> Sequence[Node]:
        p = tile.apply(Fn.DIV, most(c.masses(n), 0.0), whole)  # a lone column has exactly 1
        there = tile.apply(Fn.LT, 0.0, p)
        log_q = sub(c.scores(n), lse)
        gap = sub(tile.apply(Fn.LOG, tile.apply(Fn.WHERE, there, p, 1.0)), log_q)
        found = tile.apply(Fn.WHERE, there, mul(p, gap), 0.0)
        if c.own.schedule.order == "excess":
            present = tile.apply(Fn.LE, 0.0, c.masses(n))
            found = tile.apply(Fn.WHERE, present, _excess(p, gap, found, log_q), 0.0)
        return [add(sum_, tile.reduce("sum", found, c.keys))]

    (found,) = tile.loop(*c.span, 1, [tile.const(0.0)], visit, c.own.schedule.stages)
    if c.own.schedule.order != "excess":
        return found
    return tile.apply(Fn.WHERE, tile.apply(Fn.LT, 0.0, total), found, 0.0)


def _excess(p: Node, gap: Node, product: Node, log_q: Node) -> Node:
    """p * gap - p + q, which adds up to the same and is nowhere negative.

    The sum of p * gap is a small difference of larger terms where the scores are near their target: its rounding, of
    the order of p * gap, is that of gap squared here. Close to 0 this is p * (e^-gap - 1 + gap) as a series.
    """
    series: Node = tile.const(0.0)
    for power in range(TERMS, 1, -1):
        series = add(mul(series, gap), tile.const((-1.0) ** power / math.factorial(power)))
    near = tile.apply(Fn.LT, tile.apply(Fn.ABS, gap), 0.5)
    close = mul(p, mul(series, mul(gap, gap)))
    apart = add(sub(product, p), tile.apply(Fn.EXP, log_q))
    return tile.apply(Fn.WHERE, near, tile.apply(Fn.WHERE, tile.apply(Fn.LT, 0.0, p), close, apart), apart)


class Slope:
    """The gradients of the scores that a loss compares, for one list of one token."""

    def __init__(self, spec: Divergence, c: Columns | Keys, rows: Sequence[Tensor]) -> None:
        at = (c.own.batch, c.own.token, c.listed)
        total, self.lse, grad = (tile.load(x, *at) for x in rows)
        some = tile.apply(Fn.LT, 0.0, total)
        self.whole = tile.apply(Fn.WHERE, some, total, 1.0)
        self.factor = tile.apply(Fn.WHERE, some, mul(grad, spec.coefficient), 0.0)

    def of(self, mass: Node, scores: Node) -> Node:
        """grad * coefficient * (softmax(score) - p); 0 where there is no column."""
        gap = sub(tile.apply(Fn.EXP, sub(scores, self.lse)), tile.apply(Fn.DIV, mass, self.whole))
        return tile.apply(Fn.WHERE, tile.apply(Fn.LE, 0.0, mass), mul(gap, self.factor), 0.0)


def default(spec: Divergence, target: str) -> Schedule:
    """64 columns at a time; sums without cancelled terms off the GPU, where they are not measured yet."""
    found = walk(spec.index, target)
    return found if target.startswith("triton") else replace(found, order="excess")


def walk(spec: Selector, target: str) -> Schedule:
    """A tile of columns beside the list's index heads."""
    if not target.startswith("triton"):
        return Schedule(block=16, lanes=("n", "d"), split_dims=False)
    return Schedule(block=32 if spec.dtype == "float32" else 64, warps=4, stages=2)


def space(spec: object, target: str) -> dict[str, tuple[object, ...]]:
    """Columns of a tile, warps and stages."""
    if not target.startswith("triton"):
        return {"block": (8, 16, 32)}
    return {"block": (16, 32, 64, 128), "warps": (2, 4, 8), "stages": (1, 2, 3)}
