"""What queries ask of masses, backward: gradients of queries by level, and what each chunk hands to those before it.

With u = z/|z| and s = scale q · u, ds the gradient of s:

    dq = scale ds u,    dz = Σ_h scale ds (q − (q · u) u) / |z|,    a chunk hands on Σ_i e^Γ_i dz_i
"""

from __future__ import annotations

from functools import reduce

from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk.parts import Chunk, power_of_two
from sparsec.lower.scan.masses.level import Axes, Level, axes, masses, read
from sparsec.lower.scan.masses.scores import head, inverse, query
from sparsec.plan.states.scan_specs import Operand
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor

MOST_AT_ONCE = 2
"""Query heads that are written out one after the other; more go through a loop, whose turns share registers."""


def slope(level: Level, at: Chunk, a: Axes, slopes: Tensor, scale: float, number: int | Node) -> Node:
    """scale ds ``[c]`` of one of the query heads."""
    bounds: dict[int, tile.Value] = {1: tile.param(level.own.writes.length)}
    found = tile.load(slopes, at.batch, at.token(a.asking), head(level, at, number), bounds=bounds)
    return mul(scale, found)


def across(level: Level, at: Chunk, a: Axes, z: Node, slopes: Tensor, scale: float, made: Tensor | None) -> Node:
    """dz ``[c,d]``; stores dq where there is room for it."""
    unit = inverse(z, a.dims)

    def of(number: int | Node) -> Node:
        q = query(level, at, a, number)
        by = mul(slope(level, at, a, slopes, scale, number), unit)
        along = mul(unit, tile.reduce("sum", mul(q, z), a.dims))
        if made is not None:
            bounds: dict[int, tile.Value] = {1: tile.param(level.own.writes.length)}
            bounds |= {3: level.limit} if level.limit else {}
            value = tile.cast(mul(by, z), made.dtype)
            place = (at.batch, at.token(a.asking), head(level, at, number), tile.iota(a.dims))
            tile.store(made, *place, value=value, bounds=bounds)
        return mul(by, sub(q, mul(along, mul(unit, z))))

    if level.group <= MOST_AT_ONCE:
        return reduce(add, map(of, range(level.group)))
    nothing = [tile.full(0.0, a.asking, a.dims)]
    (total,) = tile.loop(0, level.group, 1, nothing, lambda number, sum_: [add(sum_, of(number))])
    return total


def gradient(level: Level, dtype: str) -> Tensor:
    """dq in the order of the level ``[B,N,heads,dim]``."""
    return level.own.tensor(Operand(f"{level.own.name}_dq", dtype), level.heads, level.dim)


def handed(level: Level) -> Tensor:
    """What each chunk hands on."""
    return level.per_chunk("handed")


def lower(level: Level, slopes: Tensor, scale: float, made: Tensor | None) -> Program:
    """One (head, chunk, batch) per grid point."""
    own, out = level.own, handed(level)
    with tile.Builder() as builder:
        a, at = axes(builder, level), level.chunk()
        grad = across(level, at, a, masses(level, at, a, own=True), slopes, scale, made)
        grad = mul(power_of_two(at.sums(a.asking)), grad) if own.decays else grad
        value = tile.reduce("sum", grad, a.asking)
        tile.store(out, at.batch, at.head, at.number, tile.iota(a.dims), value=value)
        tensors = [*read(level), level.queries, slopes, out] + ([made] if made is not None else [])
        return level.program(builder, "asked", tensors)
