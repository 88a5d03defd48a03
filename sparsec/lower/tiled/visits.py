"""Which tiles a loop goes to: the ranges of a mask in one loop or by phases, or the entries of a block list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sparsec.lower.ranges import TileRange, nth, outside_interior, total
from sparsec.lower.scalars import add, mul
from sparsec.plan.specs import BlockList
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor


@dataclass(frozen=True, slots=True)
class Visits:
    """One loop of visits.

    Attributes:
        count: how many tiles it goes to.
        at: the tile of the n-th visit.
        masked: whether a tile needs its mask: False never, None always, else under that scalar condition.
    """

    count: Node
    at: Callable[[Node], Node]
    masked: Callable[[Node], Node | bool | None]


def of_ranges(ranges: list[TileRange], phases: str) -> list[Visits]:
    """``branch``: all tiles in one loop, masked under a condition; ``split``: a loop for mask-free tiles, then one for
    the others."""
    if phases == "branch":
        return [_of(ranges, lambda at: outside_interior(ranges, at))]
    inner = [replace(r, start=r.inner_start, stop=r.inner_stop) for r in ranges if r.inner]
    edges = [part for r in ranges for part in _edges(r)]
    loops = [_of(inner, lambda _: False)] if inner else []
    return [*loops, _of(edges, lambda _: None)] if edges else loops


def _of(ranges: list[TileRange], masked: Callable[[Node], Node | bool | None]) -> Visits:
    return Visits(total(ranges), lambda n: nth(ranges, n), masked)


def _edges(r: TileRange) -> list[TileRange]:
    """What a range has outside its interior."""
    if not r.inner:
        return [r]
    before = [replace(r, stop=r.inner_start)] if r.head else []
    return [*before, replace(r, start=r.inner_stop)] if r.tail else before


def of_list(
    listed: BlockList,
    tensors: Mapping[str, Tensor],
    row: tuple[Node | int, ...],
    parts: int,
    ranges: Callable[[], list[TileRange]],
) -> Visits:
    """The entries of one row of a block list, each of ``parts`` tiles.

    All of them are masked, but for given lists: there a tile is where it lies outside the interior of all ``ranges``.
    """
    count = mul(tile.load(tensors[listed.counts], *row), parts)

    def at(n: Node) -> Node:
        entry = tile.load(tensors[listed.ids], *row, tile.apply(Fn.TRUNCDIV, n, parts))
        return add(mul(entry, parts), tile.apply(Fn.TRUNCMOD, n, parts))

    if listed.given is None:
        return Visits(count, at, lambda _: None)
    known = ranges()
    return Visits(count, at, lambda n: outside_interior(known, n))


def row_of(listed: BlockList, batch: Node, head: Node, heads: int, number: Node) -> tuple[Node | int, ...]:
    """Where the list of one tile stands in ids and counts; ``head`` is one of ``heads``."""
    shared = heads // listed.heads
    own = 0 if listed.heads == 1 else head if shared == 1 else tile.apply(Fn.TRUNCDIV, head, shared)
    return (batch if listed.per_batch else 0, own, number)
