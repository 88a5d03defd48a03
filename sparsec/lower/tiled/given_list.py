"""The block list that a declaration gives, without its -1; transposed, for the backward: who listed a key tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.inverse.index import exclusive
from sparsec.lower.ranges import outside_interior, tile_ranges
from sparsec.lower.scalars import add, both, ceil_div, mul
from sparsec.lower.tiled import visits
from sparsec.lower.tiled.grad import last_of
from sparsec.plan.specs import BlockList, Piece
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule

TOGETHER = 32
"""Query tiles whose lists are searched at once."""


@dataclass(frozen=True, slots=True)
class List:
    """The list of one tile under construction: its place, the tensors, and the axis of a given list's slots."""

    spec: BlockList
    tensors: dict[str, Tensor]
    own: Node
    head: Node
    batch: Node
    slots: Axis

    @property
    def queries(self) -> Node:
        """How many query tiles there are."""
        return ceil_div(tile.param("TQ"), self.spec.block_q)


def lower(spec: BlockList, schedule: Schedule) -> Program:
    """One (query tile, list head, batch) per grid point reads all slots of its list.

    Transposed, one (key tile, list head, batch) walks all query tiles and keeps those whose list names it.
    """
    with tile.Builder() as builder:
        tensors = {t.name: t for t in _tensors(spec)}
        own, head, batch = (tile.program_id(d) for d in range(3))
        found = List(spec, tensors, own, head, batch, builder.axis("n", 1 << (spec.slots - 1).bit_length()))
        if spec.transposed:
            _transposed(found, builder.axis("m", TOGETHER))
        else:
            _kept(found)
        tiles = ceil_div(tile.param(spec.length), spec.block_k) if spec.transposed else found.queries
        params = [(n, "int32") for n in dict.fromkeys(["B", "TQ", "TK", "q_offset", spec.length])]
        return builder.program(
            spec.name, list(tensors.values()), params, (tiles, tile.const(spec.heads), tile.param("B"))
        )


def _tensors(spec: BlockList) -> list[Tensor]:
    """The given lists, and what is written."""
    lead: tuple[str | int, ...] = ("B", "LT", spec.heads)
    assert spec.given is not None
    ids = Tensor(spec.ids, "int32", ("B", spec.heads, "LK" if spec.transposed else "LQ", "LE"))
    limits = [] if spec.given_counts is None else [Tensor(spec.given_counts, "int32", lead)]
    sums = [Tensor(name, "int32", ids.shape[:3]) for name in spec.buffers[1:]]
    return [Tensor(spec.given, "int32", (*lead, spec.slots)), *limits, ids, *sums]


def _given(found: List, at: Node) -> tuple[Node, Node]:
    """The slots of some query tiles, and which of them name anything."""
    spec, slot = found.spec, tile.iota(found.slots)
    assert spec.given is not None
    place = (found.batch, at, found.head)
    bounds: dict[int, tile.Value] = {1: found.queries}
    entry = tile.load(found.tensors[spec.given], *place, slot, bounds={**bounds, 3: spec.slots}, other=-1)
    named = tile.apply(Fn.LE, 0, entry)
    if spec.given_counts is None:
        return entry, named
    limit = tile.load(found.tensors[spec.given_counts], *place, bounds=bounds, other=0)
    return entry, both(named, tile.apply(Fn.LT, slot, limit))


def _masked(found: List, tiles: Node) -> Node | None:
    """Which tiles, of keys or, transposed, of queries, the mask may hide something of; None: all of them."""
    spec = found.spec
    env = {name: tile.param(name) for name in ("B", "TQ", "TK", "q_offset", spec.length)}
    if spec.transposed:
        first, length = mul(found.own, spec.block_k), tile.param(spec.length)
        env |= {"i_lo": first, "i_hi": last_of(first, spec.block_k, length)}
        rows = Piece("", "", "TQ", visits.turned(spec.where))
        return outside_interior(tile_ranges(rows, spec.block_q, tile.param("TQ"), env, {}), tiles)
    first, offset = mul(found.own, spec.block_q), tile.param("q_offset")
    last = last_of(first, spec.block_q, tile.param("TQ"))
    env |= {"i_lo": add(first, offset), "i_hi": add(last, offset)}
    keys = Piece("", "", spec.length, spec.where)
    return outside_interior(tile_ranges(keys, spec.block_k, tile.param(spec.length), env, {}), tiles)


def _parts(found: List, named: Node, tiles: Node) -> list[Node]:
    """Of the named tiles those that are whole, then the others; all of them at once where the list does not ask."""
    masked = None if found.spec.whole is None else _masked(found, tiles)
    if masked is None:
        return [named]
    return [both(named, tile.apply(Fn.NOT, masked)), both(named, masked)]


def _append(found: List, count: Node, here: Node, value: Node, end: Node | int) -> Node:
    """Put the values that are ``here`` behind ``count`` others; how many there are then."""
    taken = tile.apply(Fn.WHERE, here, 1, 0)
    place = tile.apply(Fn.WHERE, here, add(count, exclusive(taken)), end)
    tile.store(found.tensors[found.spec.ids], *_row(found), place, value=value, bounds={3: end})
    return add(count, tile.reduce("sum", taken, taken.axes[0]))


def _row(found: List) -> tuple[Node, Node, Node]:
    return found.batch, found.head, found.own


def _sums(found: List, after: Sequence[Node]) -> None:
    """Store the number of whole tiles and that of all."""
    if found.spec.whole is not None:
        whole = after[0] if len(after) == 2 else tile.const(0)
        tile.store(found.tensors[found.spec.whole], *_row(found), value=whole)
    tile.store(found.tensors[found.spec.counts], *_row(found), value=after[-1])


def _kept(found: List) -> None:
    entry, named = _given(found, found.own)
    after: list[Node] = []
    for part in _parts(found, named, entry):
        after.append(_append(found, after[-1] if after else tile.const(0), part, entry, found.spec.slots))
    _sums(found, after)


def _transposed(found: List, some: Axis) -> None:
    """``TOGETHER`` query tiles at a time: those that name this key tile go behind those before them."""
    number = 2 if found.spec.whole is not None and _masked(found, tile.const(0)) is not None else 1
    after: list[Node] = []
    for part in range(number):

        def visit(n: Node, count: Node, part: int = part) -> Sequence[Node]:
            at = add(mul(n, TOGETHER), tile.iota(some))
            entry, named = _given(found, at)
            named = both(named, tile.apply(Fn.EQ, entry, found.own))
            here = tile.reduce("max", tile.apply(Fn.WHERE, named, 1, 0), found.slots)
            listed = _parts(found, tile.apply(Fn.EQ, here, 1), at)[part]
            return [_append(found, count, listed, at, found.queries)]

        start = after[-1] if after else tile.const(0)
        after += tile.loop(0, ceil_div(found.queries, TOGETHER), 1, [start], visit)
    _sums(found, after)
