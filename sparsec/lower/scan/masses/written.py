"""Gradients of what makes a mass, chunk by chunk: keys, strengths and decays.

With λ_j = Σ_{i >= j} e^{Γ_i − Γ_j} dz_i + e^{Γ_C − Γ_j} G, G the gradient of the mass after the chunk:

    dk_j = beta_j λ_j,    d beta_j = k_j · λ_j,    d g_j = (z_j − beta_j k_j) · λ_j

where z_j − beta_j k_j is added up by itself, so that nothing is left of a difference.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.scalars import add, mul
from sparsec.lower.scan.chunk.operands import halves, product
from sparsec.lower.scan.chunk.parts import Chunk
from sparsec.lower.scan.masses.asked import across
from sparsec.lower.scan.masses.level import Axes, Level, axes, fade, masses, read
from sparsec.plan.states.scan_specs import Operand
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor


@dataclass(frozen=True, slots=True)
class Made:
    """The gradients that are asked for, in the order of the level; None is not."""

    keys: Operand | None
    beta: Operand | None
    decay: Operand | None


def after(level: Level) -> Tensor:
    """The gradient of the mass after each chunk."""
    return level.per_chunk("afters")


def lower(level: Level, slopes: Tensor, scale: float, made: Made) -> Program:
    """One (head, chunk, batch) per grid point."""
    w, tensors = level.own.writes, [*read(level), level.queries, slopes, after(level)]
    with tile.Builder() as builder:
        a, at = axes(builder, level), level.chunk()
        beta, rest = at.beta(a.asking), masses(level, at, a, own=False)
        key = _key(level, at, a, 0.0)
        own = key if beta is None else mul(beta, key)
        passed = _passed(level, at, a, across(level, at, a, add(rest, own), slopes, scale, None))
        place = (at.batch, at.token(a.asking), at.head)
        bounds: dict[int, tile.Value] = {1: tile.param(w.length)}
        for operand, other in ((made.beta, _key(level, at, a, 1.0)), (made.decay, rest)):
            if operand is not None:
                tensors.append(level.own.tensor(operand, w.heads))
                value = tile.cast(tile.reduce("sum", mul(other, passed), a.dims), operand.dtype)
                tile.store(tensors[-1], *place, value=value, bounds=dict(bounds))
        if made.keys is not None:
            tensors.append(level.own.tensor(made.keys, w.heads, level.dim))
            limits = bounds | ({3: level.limit} if level.limit else {})
            value = tile.cast(passed if beta is None else mul(beta, passed), made.keys.dtype)
            tile.store(tensors[-1], *place, tile.iota(a.dims), value=value, bounds=limits)
        return level.program(builder, "written", tensors)


def _key(level: Level, at: Chunk, a: Axes, other: float) -> Node:
    """Keys ``[c,d]`` in fp32; loaded again with another value past the last token, so that no register holds them."""
    bounds: dict[int, tile.Value] = {1: tile.param(level.own.writes.length)}
    bounds |= {3: level.limit} if level.limit else {}
    place = (at.batch, at.token(a.asking), at.head, tile.iota(a.dims))
    return tile.cast(tile.load(level.keys, *place, bounds=bounds, other=other), "float32")


def _passed(level: Level, at: Chunk, a: Axes, grad: Node) -> Node:
    """λ ``[c,d]``."""
    dtype, c, n = level.keys.dtype, tile.iota(a.asking), tile.iota(a.added)
    left = fade(level, at, a.added, a.asking)
    weight = tile.full(1.0, a.asking, a.added) if left is None else left
    weights = halves(tile.apply(Fn.WHERE, tile.apply(Fn.LT, c, n), weight, 0.0), dtype)
    later = [tile.rename(x, a.asking, a.added) for x in halves(grad, dtype)]
    beyond, end = tile.load(after(level), at.batch, at.head, at.number, tile.iota(a.dims)), at.left(a.asking)
    start = add(grad, beyond if end is None else mul(end, beyond))
    return product(weights, later, a.added, start, level.own.schedule.precision)
