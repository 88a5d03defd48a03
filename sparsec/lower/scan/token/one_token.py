"""One token, no loop: states are read, written and put back; of a bank with a route, those that the token chose.

One program per slot of the token's list, state head, tile of columns and batch entry. It looks its part up, so that
parts that rest are neither read nor written; a slot that holds none answers 0 and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scalars import mul
from sparsec.lower.scan.cell import Cell, cell, parameters, states_shape
from sparsec.lower.scan.token import sums
from sparsec.lower.scan.token.step import after
from sparsec.lower.scan.token.visit import Place, Visit, listed, token, token_of, weight_of
from sparsec.plan.states.scan_specs import Route, Scan
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule

ORDER = "one_token"
"""The loop order of a schedule for one token per call, which decode steps alone know to have."""


@dataclass(slots=True)
class Only(Cell):
    """The only state of a head."""

    @property
    def share(self) -> Node:
        """Which of the programs that share its columns this is."""
        return tile.const(0) if self.tiles == 1 else tile.program_id(0)


@dataclass(slots=True)
class Chosen(Cell):
    """The state that a slot of the only token's list names."""

    @property
    def slot(self) -> Node:
        """The slot."""
        if self.route.slots == 1:
            return tile.const(0)
        return tile.apply(Fn.TRUNCDIV, tile.program_id(0), self.tiles)

    @property
    def share(self) -> Node:
        """Which of the programs that share its columns this is."""
        if self.tiles == 1:
            return tile.const(0)
        own = tile.program_id(0)
        return own if self.route.slots == 1 else tile.apply(Fn.TRUNCMOD, own, self.tiles)

    @property
    def part(self) -> Node:
        """The part in it; one past the last where there is none."""
        route = self.route
        ids = Tensor(route.ids, "int32", ("B", self.writes.length, route.lists, route.slots))
        limit: dict[int, tile.Value] = {1: tile.param(self.writes.length)}
        found = tile.load(self.tensor(ids), self.batch, 0, listed(self), self.slot, bounds=limit, other=-1)
        return tile.apply(Fn.WHERE, tile.apply(Fn.LT, found, 0), route.parts, found)

    @property
    def route(self) -> Route:
        """The bank's route."""
        assert self.writes.route is not None
        return self.writes.route


def fits(spec: Scan) -> bool:
    """Whether a token writes once, and leaves the parts that it does not choose alone."""
    route = spec.writes.route
    return (route is None or route.freeze) and spec.writes.steps == 1


def lower(spec: Scan, schedule: Schedule) -> Lowered:
    """As the token recurrence, of one token: a caller that may have more must not take it."""
    added, scratch = sums.sums(spec.name, spec.writes, [sums.answered(r) for r in spec.reads], schedule)
    return Lowered((Step(_program(spec, schedule), schedule), *added), tuple(scratch))


def _program(spec: Scan, schedule: Schedule) -> Program:
    w = spec.writes
    with tile.Builder() as builder:
        found, slots = cell(builder, w, schedule), 1 if w.route is None else w.route.slots
        own = (Only if w.route is None else Chosen)(w, found.rows, found.cols, found.tiles)
        old = own.first()
        now = token_of(own, _visit(own)) if isinstance(own, Chosen) else token(own, tile.const(0), bounded=True)
        new = after(spec, own, schedule, now, old)
        if spec.final is not None:
            own.keep(Tensor(spec.final, "float32", states_shape(w)), own.batch, own.part, own.head, value=new, part=1)
        grid = (tile.const(slots * own.tiles), tile.const(w.heads), tile.param("B"))
        return builder.program(spec.name, list(own.tensors.values()), parameters(w), grid)


def _visit(own: Chosen) -> Visit:
    """The only token, as its slot meets it."""
    at, route = tile.const(0), own.route
    live = tile.apply(Fn.WHERE, tile.apply(Fn.LT, own.part, route.parts), tile.const(1.0), 0.0)
    weight = route.weight
    share = live if weight is None else mul(live, weight_of(own, route, weight, at, own.slot, True))
    return Visit(at, True, live, share, None, (Place(at, own.slot, True),), own.slot)
