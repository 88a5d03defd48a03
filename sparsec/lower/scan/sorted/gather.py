"""Tensors per token sorted by part: one program per tensor moves rows, another makes e·beta."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.scalars import add, mul
from sparsec.lower.scan.cell import padded
from sparsec.lower.scan.runs import CUT, ROOM, SEGMENTS, Runs
from sparsec.lower.scan.sorted.spec import Moved
from sparsec.plan.states.scan_specs import Operand, Writes
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Row:
    """The tokens of one stretch of sorted rows.

    Attributes:
        at: their numbers [n], the sequence's length where there is none; ``slot`` by which they chose the part.
    """

    runs: Runs
    head: Node
    at: Node
    slot: Node
    place: Node

    @property
    def batch(self) -> Node:
        """The batch entry."""
        return tile.program_id(2)

    def of(self, slot: int) -> Node:
        """Tokens that chose the part by a slot [n]; the sequence's length for others."""
        return tile.apply(Fn.WHERE, tile.apply(Fn.EQ, self.slot, slot), self.at, tile.param(self.runs.length))

    def weight(self, weight: Operand) -> Node:
        """e [n] in fp32."""
        route = self.runs.route
        tensor = Tensor(weight.name, weight.dtype, ("B", self.runs.length, route.lists, route.slots))
        limit: dict[int, tile.Value] = {1: tile.param(self.runs.length)}
        listed = self.runs.listed(self.head)
        return tile.cast(tile.load(tensor, self.batch, self.at, listed, self.slot, bounds=limit), "float32")


def rows_of(runs: Runs, axis: Axis, head: Node, heads: int, states: int) -> Row:
    """The tokens of this program's stretch; those of the run of none are none."""
    route, number, batch = runs.route, tile.program_id(1), tile.program_id(2)
    own = tile.apply(Fn.TRUNCDIV, head, heads // states)
    listed = runs.listed(own)
    part, held = (tile.load(runs.stretches, batch, listed, number, field) for field in (0, 3))
    held = tile.apply(Fn.WHERE, tile.apply(Fn.LT, part, route.parts), held, 0)
    there = tile.apply(Fn.LT, tile.iota(axis), held)
    place = add(mul(number, runs.align), tile.iota(axis))
    entry = tile.load(runs.entries, batch, listed, place)
    at = tile.apply(Fn.WHERE, there, tile.apply(Fn.TRUNCDIV, entry, route.slots), tile.param(runs.length))
    slot = tile.apply(Fn.WHERE, there, tile.apply(Fn.TRUNCMOD, entry, route.slots), 0)
    return Row(runs, own, at, slot, place)


def lower(runs: Runs, w: Writes, moved: Moved, schedule: Schedule) -> Program:
    """One (head, stretch, batch) per grid point."""
    with tile.Builder() as builder:
        axis, given = builder.axis("n", runs.align), moved.tensors(w)
        row = rows_of(runs, axis, tile.program_id(0), moved.heads, w.heads)
        index, limits = last(builder, moved, schedule)
        bounds = {1: tile.param(runs.length), **limits}
        at = row.at if moved.slot is None else row.of(moved.slot)
        value = tile.load(given[0], row.batch, at, tile.program_id(0), *index, bounds=bounds)
        tensors = [*given, runs.entries, runs.stretches]
        if moved.weighed and runs.route.weight is not None:
            e = row.weight(runs.route.weight)
            value = tile.cast(mul(tile.cast(value, "float32"), e), given[1].dtype)
            tensors.append(_weight(runs))
        tile.store(given[1], row.batch, row.place, tile.program_id(0), *index, value=value, bounds=limits)
        return program(builder, runs, f"{runs.name}_sort_{moved.sorted.name}", tensors, moved.heads)


def lower_rate(runs: Runs, w: Writes, out: Operand, schedule: Schedule) -> Program:
    """e·beta, fp32 ``[B,room,HKV]``."""
    weight = runs.route.weight
    with tile.Builder() as builder:
        row = rows_of(runs, builder.axis("n", runs.align), tile.program_id(0), w.heads, w.heads)
        made, tensors = Tensor(out.name, "float32", ("B", ROOM, w.heads)), [runs.entries, runs.stretches]
        rate: Node = tile.const(1.0)
        if w.beta is not None:
            beta = Tensor(w.beta.name, w.beta.dtype, ("B", w.length, w.heads))
            found = tile.load(beta, row.batch, row.at, row.head, bounds={1: tile.param(w.length)})
            rate, tensors = tile.cast(found, "float32"), [*tensors, beta]
        if weight is not None:
            rate, tensors = mul(row.weight(weight), rate), [*tensors, _weight(runs)]
        tile.store(made, row.batch, row.place, row.head, value=rate)
        return program(builder, runs, f"{runs.name}_sort_{out.name}", [*tensors, made], w.heads)


def _weight(runs: Runs) -> Tensor:
    route = runs.route
    assert route.weight is not None
    shape = ("B", runs.length, route.lists, route.slots)
    return Tensor(route.weight.name, route.weight.dtype, shape)


def last(builder: tile.Builder, moved: Moved, schedule: Schedule) -> tuple[tuple[Node, ...], dict[int, tile.Value]]:
    """The index of the last dim, and its bound."""
    if not moved.last:
        return (), {}
    size = padded(moved.last) if schedule.split_dims else moved.last
    return (tile.iota(builder.axis("d", size)),), {3: moved.last} if size != moved.last else {}


def program(builder: tile.Builder, runs: Runs, name: str, tensors: list[Tensor], heads: int) -> Program:
    """The finished program of one (head, stretch, batch) per grid point."""
    used = {t.name: t for t in tensors}
    names = dict.fromkeys(["B", "TQ", "TK", "q_offset", runs.length, ROOM, SEGMENTS, CUT])
    grid = (tile.const(heads), tile.param(CUT), tile.param("B"))
    return builder.program(name, list(used.values()), [(n, "int32") for n in names], grid)
