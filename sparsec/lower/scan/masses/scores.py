"""Scores of one candidate: scale · q · z/|z|, the masses z worked out chunk by chunk and kept nowhere."""

from __future__ import annotations

from sparsec.lower.scalars import add, mul
from sparsec.lower.scan.chunk.parts import Chunk
from sparsec.lower.scan.masses.level import Axes, Level, axes, masses, read
from sparsec.lower.scan.mixture.weights import NOTHING
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor


def inverse(z: Node, dims: Axis) -> Node:
    """1/|z| ``[c]`` of z, whose square need not be a number of fp32; 1 where z is 0."""
    size = tile.reduce("max", tile.apply(Fn.ABS, z), dims)
    empty = tile.apply(Fn.LE, size, NOTHING)
    by = tile.apply(Fn.DIV, tile.const(1.0), tile.apply(Fn.WHERE, empty, 1.0, size))
    small = mul(z, by)
    square = tile.reduce("sum", mul(small, small), dims)
    return mul(by, tile.apply(Fn.RSQRT, tile.apply(Fn.WHERE, empty, 1.0, square)))


def head(level: Level, at: Chunk, number: int | Node) -> Node:
    """One of the query heads of the masses' head."""
    return add(mul(at.head, level.group), number)


def query(level: Level, at: Chunk, a: Axes, number: int | Node) -> Node:
    """``[c,d]`` of one of the query heads, in fp32."""
    return tile.cast(level.rows(at, a.asking, a.dims, head(level, at, number)), "float32")


def store(level: Level, at: Chunk, tensor: Tensor, axis: Axis, number: int, value: Node) -> None:
    """A number per token of one of the query heads."""
    bounds: dict[int, tile.Value] = {1: tile.param(level.own.writes.length)}
    tile.store(tensor, at.batch, at.token(axis), head(level, at, number), value=value, bounds=bounds)


def lower(level: Level, scale: float) -> Program:
    """fp32 ``[B,N,heads]``; one (head, chunk, batch) per grid point."""
    made = level.per_query("scores")
    with tile.Builder() as builder:
        a, at = axes(builder, level), level.chunk()
        z = masses(level, at, a, own=True)
        unit = mul(scale, inverse(z, a.dims))
        for number in range(level.group):
            along = tile.reduce("sum", mul(query(level, at, a, number), z), a.dims)
            store(level, at, made, a.asking, number, mul(unit, along))
        return level.program(builder, "scores", [*read(level), *level.touched(queries=True), made])
