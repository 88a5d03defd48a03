"""What the programs of a router share: tiles of tokens by parts, and their tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from sparsec.lower.scalars import add, both, ceil_div, mul
from sparsec.plan.states.route_specs import Router
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule

BLOCK = 64
"""Columns of x that a program holds at once."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tile of tokens of one batch entry, and all parts.

    Attributes:
        token: their numbers [m].
        parts: part numbers [n], of which those from ``spec.parts`` on are none.
    """

    spec: Router
    rows: Axis
    parts: Axis
    batch: Node
    token: Node

    @property
    def part(self) -> Node:
        """Numbers of the parts [n]."""
        return tile.iota(self.parts)

    @property
    def real(self) -> Node:
        """Which tokens and parts there are [m,n]."""
        length = tile.apply(Fn.LT, self.token, tile.param(self.spec.length))
        return both(length, tile.apply(Fn.LT, self.part, self.spec.parts))

    @property
    def limits(self) -> dict[int, tile.Value]:
        """Bounds of tokens and parts in ``shares``."""
        return {1: tile.param(self.spec.length), 3: self.spec.parts}

    def shares(self) -> Node:
        """Those of all parts [m,n]; 0 outside."""
        return tile.load(shares(self.spec), self.batch, self.token, 0, self.part, bounds=self.limits)

    def chosen(self) -> list[Node]:
        """For each slot, whether it holds a part [m,n]."""
        limit: dict[int, tile.Value] = {1: tile.param(self.spec.length)}
        found = []
        for slot in range(self.spec.slots):
            id_ = tile.load(ids(self.spec), self.batch, self.token, 0, slot, bounds=dict(limit), other=-1)
            found.append(tile.apply(Fn.EQ, id_, self.part))
        return found


def tokens(builder: tile.Builder, spec: Router, schedule: Schedule, first: Node, batch: Node) -> Tokens:
    """The tile of tokens that begins at ``first``."""
    rows = builder.axis("m", schedule.rows)
    least = 16 if schedule.rows >= 16 else 2  # as products of tiles need
    size = max(least, 1 << (spec.parts - 1).bit_length()) if schedule.split_dims else spec.parts
    return Tokens(spec, rows, builder.axis("n", size), batch, add(first, tile.iota(rows)))


def any_of(found: Sequence[Node]) -> Node:
    """Where one of several holds, as 1.0 or 0.0."""
    return tile.apply(Fn.WHERE, reduce(lambda a, b: tile.apply(Fn.OR, a, b), found), tile.const(1.0), 0.0)


def x(spec: Router) -> Tensor:
    """What is routed."""
    return Tensor(spec.x, spec.dtype, ("B", spec.length, 1, spec.dim))


def rows(spec: Router) -> Tensor:
    """A row per part."""
    return Tensor(spec.rows, spec.rows_dtype, (spec.parts, 1, spec.dim))


def ids(spec: Router) -> Tensor:
    """The chosen."""
    return Tensor(spec.ids, "int32", ("B", spec.length, 1, spec.slots))


def shares(spec: Router) -> Tensor:
    """The shares of all parts."""
    return Tensor(spec.shares, "float32", ("B", spec.length, 1, spec.parts))


def columns(spec: Router, block: Node, axis: Axis) -> tuple[Node, dict[int, tile.Value]]:
    """Column numbers of a block of x, and their bound among the four dims of x, if they need one."""
    bound: dict[int, tile.Value] = {3: spec.dim} if spec.dim % axis.size else {}
    return add(mul(block, axis.size), tile.iota(axis)), bound


def program(
    builder: tile.Builder, spec: Router, name: str, tensors: Sequence[Tensor], grid: Sequence[tile.Value], *more: str
) -> Program:
    """The finished program."""
    names = dict.fromkeys(["B", "TQ", "TK", "q_offset", spec.length, *more])
    return builder.program(name, tensors, [(n, "int32") for n in names], grid)


def tiles(spec: Router, schedule: Schedule) -> Node:
    """Tiles of tokens."""
    return ceil_div(tile.param(spec.length), schedule.rows)
