"""Sums over what a map broadcast: the shares that programs leave, and the program that adds them up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.lowered import Scratch
from sparsec.lower.pointwise.frame import Column, columns, cut, length, params, zeros
from sparsec.lower.pointwise.rows import back
from sparsec.lower.scalars import add, ceil_div, mul
from sparsec.plan.maps.map_specs import MapGrad, MapSource, Shape, summed
from sparsec.scalar.expr import Expr, constant, var
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule

SHARES = "QT"
"""How the extent of shares is called in a shape: one per program along the rows."""
READ = 2048
"""Elements of shares that are read at once."""


def groups(spec: MapGrad) -> list[list[int]]:
    """The sources whose gradients are sums, those of one shape together: one program adds them up."""
    found: dict[Shape, list[int]] = {}
    for k, source in enumerate(spec.forward.sources):
        if spec.grads[k] is not None and summed(spec.forward, k):
            found.setdefault(source.shape, []).append(k)
    return list(found.values())


def tensor(spec: MapGrad, number: int) -> Tensor:
    """The shares of one gradient: shaped like the result with the source's last dim, one row per program if summed."""
    forward, row = spec.forward, cut(spec.forward.shape)
    ahead = forward.shape[:-1]
    lead = (SHARES if d == row and row in summed(forward, number) else n for d, n in enumerate(ahead))
    return Tensor(f"{spec.name}_shares_{number}", "float32", (*lead, forward.sources[number].shape[-1]))


def scratch(spec: MapGrad, number: int, schedule: Schedule) -> Scratch:
    """The buffer of shares to allocate."""
    made, row = tensor(spec, number), cut(spec.forward.shape)
    assert row is not None
    programs = (_extent(spec.forward.shape[row]) + (schedule.block - 1)) // schedule.block
    return Scratch(made.name, tuple(programs if n == SHARES else _extent(n) for n in made.shape), made.dtype)


def _extent(extent: int | str) -> Expr:
    return constant(extent) if isinstance(extent, int) else var(extent)


@dataclass(frozen=True, slots=True)
class Sums:
    """What one program adds up: rows of a gradient, each from all its shares.

    Attributes:
        row: the dim of the result that was cut into tiles; ``gone``: the dims that are summed over.
        axis: of the shares that are read at once, or of the rows where they are not summed over.
        place: indices of the dims that stay.
    """

    spec: MapGrad
    row: int
    gone: frozenset[int]
    axis: Axis
    columns: list[Column]
    place: dict[int, Node]
    programs: Node

    def total(self, number: int) -> list[Node]:
        """The sum of one gradient, column by column."""
        order = sorted(self.gone, key=lambda d: d == self.row)
        totals = self._walk(tensor(self.spec, number), order, self.place, [zeros(self.axis, c) for c in self.columns])
        return [tile.reduce("sum", x, self.axis) for x in totals] if self.row in self.gone else totals

    def _walk(self, share: Tensor, order: list[int], at: dict[int, Node], sums: Sequence[Node]) -> list[Node]:
        """Loops over the dims in order, the shares of rows innermost."""
        if not order:
            limit = self.programs if self.row in self.gone else length(self.spec.forward.shape[self.row])
            index = [at[d] for d in sorted(at)]
            return [
                add(x, tile.load(share, *index, _column(c), bounds={self.row: limit}))
                for c, x in zip(self.columns, sums, strict=True)
            ]
        d, rest = order[0], order[1:]

        def visit(n: Node, *inner: Node) -> list[Node]:
            here = add(mul(n, self.axis.size), tile.iota(self.axis)) if d == self.row else n
            return self._walk(share, rest, {**at, d: here}, inner)

        count = ceil_div(self.programs, self.axis.size) if d == self.row else length(self.spec.forward.shape[d])
        return tile.loop(0, count, 1, sums, visit)

    def index(self, source: MapSource) -> tuple[list[Node], dict[int, tile.Value]]:
        """Where the rows of this program lie in a source, and what bounds them."""
        ahead = len(self.spec.forward.shape) - len(source.shape)
        dims = range(ahead, len(self.spec.forward.shape) - 1)
        bounds: dict[int, tile.Value] = {}
        if self.row not in self.gone:
            bounds[self.row - ahead] = length(source.shape[self.row - ahead])
        return [self.place.get(d, tile.const(0)) for d in dims], bounds


def program(spec: MapGrad, group: Sequence[int], schedule: Schedule) -> Program:
    """One (tile of rows that stay, place in the other dims that stay) per grid point."""
    forward, gone, row = spec.forward, summed(spec.forward, group[0]), cut(spec.forward.shape)
    assert row is not None
    with tile.Builder() as builder:
        first = forward.sources[group[0]]
        width = first.shape[-1]
        assert isinstance(width, int)
        size = min(128, 1 << (max(READ // width, 1).bit_length() - 1)) if row in gone else schedule.rows
        axis = builder.axis("m", size)
        stay = [d for d in reversed(range(len(forward.shape) - 1)) if d not in gone and d != row]
        place = {d: tile.program_id(n) for n, d in enumerate(stay, int(row not in gone))}
        grid = [length(forward.shape[d]) for d in stay]
        if row not in gone:
            place[row] = add(mul(tile.program_id(0), size), tile.iota(axis))
            grid = [ceil_div(length(forward.shape[row]), size), *grid]
        programs = ceil_div(length(forward.shape[row]), schedule.block)
        sums = Sums(spec, row, gone, axis, columns(builder, "e", width, schedule), place, programs)
        tensors = {t.name: t for k in group for t in _finish(sums, k)}
        shapes = [forward.shape, first.shape]
        return builder.program(f"{spec.name}_{group[0]}", list(tensors.values()), params(shapes), grid or [1])


def _finish(sums: Sums, number: int) -> list[Tensor]:
    """Add up, go through the row function's adjoint, store; the tensors that were touched."""
    spec, source, given = sums.spec, sums.spec.forward.sources[number], sums.spec.grads[number]
    assert given is not None
    found, target = sums.total(number), Tensor(*given, source.stored)
    tensors, (index, bounds) = [tensor(spec, number), target], sums.index(source)
    if source.row != "none":
        x = Tensor(source.name, source.dtype, source.stored)
        read = [tile.load(x, *[*index, _column(c)][: x.rank], bounds=bounds) for c in sums.columns]
        found = back(source, [tile.cast(p, "float32") for p in read], found, sums.columns)
        tensors.append(x)
    for column, value in zip(sums.columns, found, strict=True):
        place = [*index, _column(column)][: target.rank]
        tile.store(target, *place, value=tile.cast(value, target.dtype), bounds=bounds)
    return tensors


def _column(column: Column) -> Node:
    return tile.const(0) if column is None else column.index()
