"""The block list that a declaration gives, without its -1; transposed, for the backward: who listed a key tile."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.scalars import add, both, ceil_div, least
from sparsec.plan.specs import BlockList
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: BlockList, schedule: Schedule) -> Program:
    """One (query tile, list head, batch) per grid point walks the slots of its list.

    Transposed, one (key tile, list head, batch) walks all query tiles and keeps those whose list names it.
    """
    with tile.Builder() as builder:
        made = _transposed(builder, spec) if spec.transposed else _kept(spec)
        tiles = (
            ceil_div(tile.param(spec.length), spec.block_k)
            if spec.transposed
            else ceil_div(tile.param("TQ"), spec.block_q)
        )
        params = [(n, "int32") for n in dict.fromkeys(["B", "TQ", "TK", "q_offset", spec.length])]
        return builder.program(spec.name, made, params, (tiles, tile.const(spec.heads), tile.param("B")))


def _tensors(spec: BlockList) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The given lists, ids and counts, and all of the program."""
    lead: tuple[str | int, ...] = ("B", "LT", spec.heads)
    assert spec.given is not None
    given = Tensor(spec.given, "int32", (*lead, spec.slots))
    ids = Tensor(spec.ids, "int32", ("B", spec.heads, "LK" if spec.transposed else "LQ", "LE"))
    counts = Tensor(spec.counts, "int32", ids.shape[:3])
    limits = [] if spec.given_counts is None else [Tensor(spec.given_counts, "int32", lead)]
    return given, ids, counts, [given, *limits, ids, counts]


def _place() -> tuple[Node, Node, Node]:
    """The tile, the list's head and the batch entry of a program."""
    number, head, batch = (tile.program_id(d) for d in range(3))
    return number, head, batch


def _kept(spec: BlockList) -> list[Tensor]:
    given, ids, counts, tensors = _tensors(spec)
    own, head, batch = _place()
    slots: Node = tile.const(spec.slots)
    if spec.given_counts is not None:
        slots = least(tile.load(tensors[1], batch, own, head), slots)

    def visit(n: Node, count: Node) -> Sequence[Node]:
        entry = tile.load(given, batch, own, head, n)
        tile.store(ids, batch, head, own, count, value=entry)
        return [add(count, tile.apply(Fn.WHERE, tile.apply(Fn.LE, 0, entry), 1, 0))]

    (count,) = tile.loop(0, slots, 1, [tile.const(0)], visit)
    tile.store(counts, batch, head, own, value=count)
    return tensors


def _transposed(builder: tile.Builder, spec: BlockList) -> list[Tensor]:
    given, ids, counts, tensors = _tensors(spec)
    own, head, batch = _place()
    lanes = builder.axis("n", 1 << (spec.slots - 1).bit_length())

    def visit(at: Node, count: Node) -> Sequence[Node]:
        slot = tile.iota(lanes)
        entry = tile.load(given, batch, at, head, slot, bounds={3: spec.slots}, other=-1)
        named = tile.apply(Fn.EQ, entry, own)
        if spec.given_counts is not None:
            named = both(named, tile.apply(Fn.LT, slot, tile.load(tensors[1], batch, at, head)))
        tile.store(ids, batch, head, own, count, value=at)
        return [add(count, tile.reduce("max", tile.apply(Fn.WHERE, named, 1, 0), lanes))]

    (count,) = tile.loop(0, ceil_div(tile.param("TQ"), spec.block_q), 1, [tile.const(0)], visit)
    tile.store(counts, batch, head, own, value=count)
    return tensors
