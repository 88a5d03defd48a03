"""The adjoint of a map: gradients of all sources in one walk over the rows.

What was broadcast over rows, heads or the batch is summed: every program adds up its own rows and leaves a share, and
a second program adds the shares up, always in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.pointwise import shares
from sparsec.lower.pointwise.choice import over
from sparsec.lower.pointwise.forward import applied, columns_of
from sparsec.lower.pointwise.frame import Frame, Layout, layout, length, params, zeros
from sparsec.lower.pointwise.rows import back
from sparsec.lower.scalars import add, emit, mul
from sparsec.plan.maps.map_specs import MapGrad, MapSource, needed, summed, symbol
from sparsec.scalar.derivative import derivative
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule, ScheduleError


def lower(spec: MapGrad, schedule: Schedule) -> Lowered:
    """One program over the rows, and one per shape of what is summed."""
    if schedule.block % schedule.rows:
        raise ScheduleError(f"{schedule.block} rows per program are no whole number of tiles of {schedule.rows}")
    steps = [Step(_rows(spec, schedule), schedule, flat=True)]
    steps += [Step(shares.program(spec, group, schedule), schedule, flat=True) for group in shares.groups(spec)]
    scratch = tuple(shares.scratch(spec, k, schedule) for group in shares.groups(spec) for k in group)
    return Lowered(tuple(steps), scratch)


@dataclass(frozen=True, slots=True)
class Walk:
    """The walk over the rows of one program.

    Attributes:
        asked: the sources with a gradient, by number; ``kept``: those that are summed over the rows, in this order.
    """

    spec: MapGrad
    tiles: Layout
    asked: list[int]
    kept: list[int]

    def gradients(self, at: Frame) -> dict[int, list[Node]]:
        """The gradient of every row function's result, column by column, summed over a broadcast last dim."""
        forward, read = self.spec.forward, needed(self.spec)
        grad = at.read(MapSource(self.spec.grad, self.spec.grad_dtype, forward.shape))
        values = applied(forward, at, read)
        found = {}
        for k in self.asked:
            slope = derivative(forward.fn, symbol(k))
            parts = [mul(g, emit(slope, columns_of(values, n))) for n, g in enumerate(grad)]
            alone = forward.sources[k].shape[-1] != forward.shape[-1]
            found[k] = [over("sum", parts, at.columns)] if alone else parts
        return found

    def visit(self, first: Node, totals: Sequence[Node]) -> list[Node]:
        """One tile: gradients of its rows are stored, sums over rows go on."""
        at, forward = self.tiles.at(first), self.spec.forward
        found, grown = self.gradients(at), list(totals)
        for k in self.asked:
            source, given = forward.sources[k], self.spec.grads[k]
            assert given is not None
            if k in self.kept:
                place = sum(len(at.own(forward.sources[n].shape)) for n in self.kept[: self.kept.index(k)])
                for n, part in enumerate(found[k]):
                    grown[place + n] = add(grown[place + n], self._inside(at, part))
                continue
            parts, target, shape = found[k], Tensor(*given, source.stored), source.shape
            if summed(forward, k):
                target = shares.tensor(self.spec, k)
                shape = target.shape
            else:
                parts = back(source, at.read(source) if source.row != "none" else [], parts, at.own(source.shape))
            for column, part in zip(at.own(source.shape), parts, strict=True):
                at.write(target, column, part, shape)
        return grown

    def _inside(self, at: Frame, part: Node) -> Node:
        """What rows past the last one would add is nothing, whatever the slope says of them."""
        assert at.row is not None
        row = tile.apply(Fn.LT, at.place[at.row], length(at.shape[at.row]))
        return tile.apply(Fn.WHERE, row, part, 0.0)


def _rows(spec: MapGrad, schedule: Schedule) -> Program:
    """One (some tiles of rows, place in the other dims) per grid point."""
    forward = spec.forward
    asked = [k for k, g in enumerate(spec.grads) if g is not None]
    with tile.Builder() as builder:
        tiles = layout(builder, forward.shape, schedule)
        walk = Walk(spec, tiles, asked, [k for k in asked if tiles.row in summed(forward, k)])
        first, steps = mul(tile.program_id(0), schedule.block), schedule.block // schedule.rows
        start = tiles.at(first)
        inits = [zeros(tiles.rows, c) for k in walk.kept for c in start.own(forward.sources[k].shape)]
        if steps == 1:
            totals = walk.visit(first, inits)
        else:
            totals = tile.loop(0, steps, 1, inits, lambda n, *sums: walk.visit(add(first, mul(n, schedule.rows)), sums))
        _store_shares(walk, start, totals)
        return builder.program(spec.name, _tensors(spec), params(_shapes(spec)), tiles.grid(schedule.block))


def _store_shares(walk: Walk, at: Frame, totals: Sequence[Node]) -> None:
    """The sums over this program's rows, in the row of the shares that has its number."""
    left = list(totals)
    for k in walk.kept:
        share = shares.tensor(walk.spec, k)
        for column in at.own(walk.spec.forward.sources[k].shape):
            assert walk.tiles.rows is not None
            total = tile.reduce("sum", left.pop(0), walk.tiles.rows)
            index = [tile.program_id(0) if d == at.row else x for d, x in enumerate(at.place)]
            tile.store(share, *index, tile.const(0) if column is None else column.index(), value=total)


def _tensors(spec: MapGrad) -> list[Tensor]:
    """Buffers in launch order: the sources, the gradient given, the gradients and shares made."""
    forward = spec.forward
    found = {s.name: Tensor(s.name, s.dtype, s.stored) for s in needed(spec)}
    found[spec.grad] = Tensor(spec.grad, spec.grad_dtype, forward.shape)
    for k, given in enumerate(spec.grads):
        if given is not None:
            made = shares.tensor(spec, k) if summed(forward, k) else Tensor(*given, forward.sources[k].stored)
            found[made.name] = made
    return list(found.values())


def _shapes(spec: MapGrad) -> list[tuple[int | str, ...]]:
    return [spec.forward.shape, *(s.shape for s in spec.forward.sources)]
