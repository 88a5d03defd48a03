"""The levels at which a chunk reads a block: loops over the bits set in its number alone, whose loads are pipelined."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparsec.lower.fenwick.rungs import Rungs, bit
from sparsec.lower.scalars import add, sub
from sparsec.lower.scan.chunk.parts import Chunk
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node

Visit = Callable[..., Sequence[Node]]


def nearest_first(rungs: Rungs, chunk: Chunk, held: Sequence[Node], visit: Visit) -> list[Node]:
    """``visit(level, *held)`` from the lowest level that is read up."""

    def lowest(rest: Node) -> Node:
        return tile.apply(Fn.AND, rest, tile.apply(Fn.SUB, 0, rest))

    return _loop(rungs, chunk, held, visit, lowest)


def farthest_first(rungs: Rungs, chunk: Chunk, held: Sequence[Node], visit: Visit) -> list[Node]:
    """``visit(level, *held)`` from the highest level that is read down."""
    return _loop(rungs, chunk, held, visit, lambda rest: rest)


def unread(rungs: Rungs, chunk: Chunk, visit: Callable[[Node], object]) -> None:
    """``visit(level)`` for the levels that are not read."""

    def level(number: Node) -> Sequence[Node]:
        def also(zero: Node) -> list[Node]:
            visit(add(number, zero))
            return []

        return tile.loop(0, sub(1, bit(chunk.number, number)), 1, [], also)

    tile.loop(0, rungs.outer, 1, [], level)


def _loop(rungs: Rungs, chunk: Chunk, held: Sequence[Node], visit: Visit, chosen: Callable[[Node], Node]) -> list[Node]:
    """A loop over set bits; ``chosen`` gives, of those that are left, a number whose highest bit is the next."""
    bits = tile.apply(Fn.AND, chunk.number, (1 << rungs.outer) - 1)

    def step(_: Node, rest: Node, *held: Node) -> Sequence[Node]:
        level = _highest(rungs, chosen(rest))
        return [tile.apply(Fn.XOR, rest, tile.apply(Fn.SHL, 1, level)), *visit(level, *held)]

    return tile.loop(0, _count(rungs, bits), 1, [bits, *held], step)[1:]


def _count(rungs: Rungs, bits: Node) -> Node:
    """How many bits are set."""
    found = bit(bits, 0)
    for n in range(1, rungs.outer):
        found = add(found, bit(bits, n))
    return found


def _highest(rungs: Rungs, bits: Node) -> Node:
    """The number of the highest bit that is set."""
    found: Node = tile.const(0)
    for n in range(1, rungs.outer):
        found = add(found, tile.apply(Fn.WHERE, tile.apply(Fn.LE, 1 << n, bits), tile.const(1), tile.const(0)))
    return found
