"""A program that reads what the same grid point of another one stored goes on in it, with the value at hand.

store(x[b, n, h, e], v); …; load(x[b, n, h, e])  ->  store(x[b, n, h, e], v); …; v
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field, replace
from functools import reduce

from sparsec.lower.decode.chained import loaded, written
from sparsec.lower.decode.together import one_grid, read_first, resources
from sparsec.lower.lowered import Step
from sparsec.lower.scalars import both
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, TileOp, access_of
from sparsec.tile.rewrite import Mapper, copies


def passed(first: Step, second: Step, needed: Set[str]) -> Step | None:
    """Both as one; None where the second reads what other grid points of the first store, or nothing of it.

    Stores that nobody else reads are left out: those of ``needed`` tensors stay.
    """
    one, other = first.program, second.program
    between = written(one) & loaded(other)
    if not between or not _fit(first, second, between):
        return None
    values = _Values(frozenset(between), frozenset(between - needed))
    with tile.Builder() as builder:
        stores, loads = Mapper(one, values.keep), Mapper(other, values.give)
        read_first(first, second, (stores, loads))
        stores.region()
        loads.region()
        if values.missing:
            return None
        tensors = {t.name: t for t in (*other.tensors, *one.tensors) if t.name not in values.gone}
        params = dict.fromkeys([*one.params, *other.params])
        name = f"{one.name}_and_{other.name}"
        return replace(first, program=builder.program(name, list(tensors.values()), list(params), copies(one.grid)))


def _fit(first: Step, second: Step, between: Set[str]) -> bool:
    """Whether two programs may run as one if what is between them is passed on; what a loop stores is not."""
    one, other = first.program, second.program
    known = {t.name: t for t in one.tensors if t.name not in between}
    alike = all(known.get(t.name, t) == t for t in other.tensors)
    return (
        alike and one_grid(one, other) and resources(first) == resources(second)
        and not written(other) & {t.name for t in one.tensors} and not _loops(one) and not _loops(other)
    )  # fmt: skip


def _loops(program: Program) -> bool:
    return any(node.op is TileOp.LOOP for node in tile.reachable(program.effects))


@dataclass(slots=True)
class _Values:
    """What a program stored by tensor and index, for the one behind it.

    Attributes:
        gone: of the tensors between the two, those that nobody else reads.
        missing: whether something was read that was not stored.
    """

    between: frozenset[str]
    gone: frozenset[str]
    known: list[tuple[str, tuple[Node, ...], Node]] = field(default_factory=list)
    missing: bool = False

    def keep(self, node: Node, args: tuple[Node, ...]) -> Node | None:
        """The rule of the first program: its stores are noted."""
        if node.op is not TileOp.STORE or access_of(node).tensor.name not in self.between:
            return None
        access = access_of(node)
        name, index, value = access.tensor.name, args[: access.tensor.rank], args[-1]
        if access.atomic or value.axes != tile.union(*index):
            self.missing = True  # what lies there now is no value at hand
        self.known.append((name, index, value))
        return value if name in self.gone else None

    def give(self, node: Node, args: tuple[Node, ...]) -> Node | None:
        """The rule of the second: a load is what was stored there, outside its bounds what it would give."""
        if node.op is not TileOp.LOAD or access_of(node).tensor.name not in self.between:
            return None
        access = access_of(node)
        rank = access.tensor.rank
        value = self._stored(access.tensor.name, args[:rank])
        if value is None:
            self.missing = True
            return None
        limits = zip(access.bounded, args[rank:], strict=True)
        inside = [tile.apply(Fn.LT, args[d], limit) for d, limit in limits]
        if not inside or access.other is None:
            return value
        return tile.apply(Fn.WHERE, reduce(both, inside), value, tile.const(access.other, value.dtype))

    def _stored(self, name: str, index: tuple[Node, ...]) -> Node | None:
        """What was stored there last, along the axes of the index."""
        for _, known, value in (entry for entry in reversed(self.known) if entry[0] == name):
            axes = dict[Axis, Axis]()
            if all(_same(x, y, axes) for x, y in zip(known, index, strict=True)):
                for old, new in axes.items():
                    value = value if old == new else tile.rename(value, old, new)
                return value
        return None


def _same(known: Node, other: Node, axes: dict[Axis, Axis]) -> bool:
    """Whether two indices are one but for the names of their axes, which are noted."""
    if known is other:
        axes.update((axis, axis) for axis in known.axes)
        return True
    if known.op is TileOp.IOTA and other.op is TileOp.IOTA and known.axes[0].size == other.axes[0].size:
        return axes.setdefault(known.axes[0], other.axes[0]) == other.axes[0]
    alike = known.op is other.op is TileOp.MAP and known.attrs == other.attrs
    return alike and all(_same(x, y, axes) for x, y in zip(known.args, other.args, strict=True))
