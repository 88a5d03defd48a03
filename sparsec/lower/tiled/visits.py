"""Which tiles a loop goes to: the ranges of a mask in one loop or by phases, or the entries of a block list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sparsec.lower.ranges import TileRange, nth, outside_interior, total
from sparsec.lower.scalars import add, mul, sub
from sparsec.plan.specs import BlockList
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.walk import substitute
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
) -> list[Visits]:
    """The entries of one row of a block list, each of ``parts`` tiles: whole ones in a loop of their own.

    Where the list does not know them all are masked, those of given lists where they lie outside the interior of all
    ``ranges``.
    """

    def at(n: Node) -> Node:
        entry = tile.load(tensors[listed.ids], *row, tile.apply(Fn.TRUNCDIV, n, parts))
        return add(mul(entry, parts), tile.apply(Fn.TRUNCMOD, n, parts))

    count = mul(tile.load(tensors[listed.counts], *row), parts)
    if listed.whole is not None:
        first = mul(tile.load(tensors[listed.whole], *row), parts)
        rest = Visits(sub(count, first), lambda n: at(add(first, n)), lambda _: None)
        return [Visits(first, at, lambda _: False), rest]
    if listed.given is None:
        return [Visits(count, at, lambda _: None)]
    known = ranges()
    return [Visits(count, at, lambda n: outside_interior(known, n))]


def turned(where: Expr | None) -> Expr | None:
    """A mask with rows of queries as ``j`` and keys as ``i``, so that its ranges are those of rows."""
    if where is None:
        return None
    return substitute(where, {"i": var("j") + var("q_offset"), "j": var("i")})


def row_of(listed: BlockList, batch: Node, head: Node, heads: int, number: Node) -> tuple[Node | int, ...]:
    """Where the list of one tile stands in ids and counts; ``head`` is one of ``heads``."""
    shared = heads // listed.heads
    own = 0 if listed.heads == 1 else head if shared == 1 else tile.apply(Fn.TRUNCDIV, head, shared)
    return (batch if listed.per_batch else 0, own, number)
