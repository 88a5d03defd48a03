"""What a few chunks together make of a zero state, where transitions are numbers: blocks of the lowest level kept.

The blocks inside a group that others read are stored on the way; a chunk past the last stands for the last one, in
blocks that are not complete.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.fenwick.leaf import made, of_writes, store
from sparsec.lower.fenwick.rungs import Rungs, column_of, tile_number, when
from sparsec.lower.scalars import add, least, mul, sub
from sparsec.lower.scan.chunk.parts import CHUNKS, Chunk, column_limit, power_of_two
from sparsec.lower.scan.chunk.state import Axes, axes
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program


def lower(rungs: Rungs) -> Program:
    """One (group and tile of columns, head, batch) per grid point."""
    own, w, span = rungs.own, rungs.own.writes, 1 << rungs.first
    with tile.Builder() as builder:
        number, part = tile_number(own, own.tiles)
        a = axes(builder, own, "cdne")
        group = Group(rungs, number, a, column_of(part, a.columns))
        tensors = [rungs.keys, rungs.values, *of_writes(rungs), rungs.read_states]
        tensors += [rungs.read_fades] * rungs.fading
        if rungs.first < rungs.outer:
            group.finish()
            tensors += [rungs.states(rungs.first)] + [rungs.fades(rungs.first)] * rungs.fading
        else:
            group.inner(0, rungs.first)
        groups = tile.apply(Fn.TRUNCDIV, add(tile.param(CHUNKS), span - 1), span)
        return own.program(builder, "group", tensors, (mul(groups, own.tiles), w.heads, tile.param("B")))


@dataclass(frozen=True, slots=True)
class Group:
    """The chunks of a program, counted from 0."""

    rungs: Rungs
    number: Node
    axes: Axes
    column: Node

    def place(self, at: int) -> Node:
        """A chunk's number in the sequence."""
        return add(mul(self.number, 1 << self.rungs.first), at)

    def chunk(self, at: int) -> Chunk:
        """A chunk, or the last one."""
        number = least(self.place(at), sub(tile.param(CHUNKS), 1))
        return Chunk(self.rungs.own, tile.program_id(2), tile.program_id(1), number)

    def fade(self, at: int, level: int) -> Node:
        """The decay over a block."""
        total = self.chunk(at).total()
        for more in range(1, 1 << level):
            total = add(total, self.chunk(at + more).total())
        return total

    def faded(self, state: Node, at: int, level: int) -> Node:
        """A state after a block that only fades it."""
        return mul(state, power_of_two(self.fade(at, level))) if self.rungs.fading else state

    def block(self, at: int, level: int, start: Node | None = None) -> Node:
        """S of a block, on top of ``start`` for one chunk; what is read of those inside is stored."""
        if level == 0:
            rungs, chunk, a = self.rungs, self.chunk(at), self.axes
            limit = column_limit(rungs.own.writes.cols, rungs.own.tiles * rungs.own.columns)
            return made(rungs, chunk, a, chunk.rows(rungs.values, chunk.head, a.keys, self.column, limit), start)
        half = 1 << level - 1
        left = self.faded(self.left(at, level), at + half, level - 1)
        if level == 1:
            return self.block(at + half, 0, left)
        return add(left, self.block(at + half, level - 1))

    def left(self, at: int, level: int) -> Node:
        """S of the first half of a block, which others read."""
        half = 1 << level - 1
        state = self.block(at, level - 1)
        self._read(self.place(at + half - 1), state, at, level - 1)
        return state

    def inner(self, at: int, level: int) -> None:
        """What is read inside a block, of which the whole is not."""
        if level:
            self.left(at, level)
            self.inner(at + (1 << level - 1), level - 1)

    def finish(self) -> None:
        """The whole group, a block of the lowest level that is kept."""
        rungs, first = self.rungs, self.rungs.first
        state = self.block(0, first)
        store(rungs.states(first), (*self._head(), self.number, *self._index()), state)
        if rungs.fading:
            store(rungs.fades(first), (*self._head(), self.number), self.fade(0, first))

        def also(_: Node) -> list[Node]:
            self._read(self.place((1 << first) - 1), state, 0, first)
            return []

        when(sub(1, tile.apply(Fn.AND, self.number, 1)), [], also)

    def _head(self) -> tuple[Node, Node]:
        return tile.program_id(2), tile.program_id(1)

    def _index(self) -> tuple[Node, Node]:
        return tile.iota(self.axes.dims), self.column

    def _read(self, last: Node, state: Node, at: int, level: int) -> None:
        """Store a block that others read, by its last chunk."""
        store(self.rungs.read_states, (*self._head(), last, *self._index()), state)
        if self.rungs.fading:
            store(self.rungs.read_fades, (*self._head(), last), self.fade(at, level))
