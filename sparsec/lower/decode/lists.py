"""Attention over chosen chunks for a few queries: programs share a token's list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sparsec.lower import softmax
from sparsec.lower.decode import ahead
from sparsec.lower.decode import merge as decode_merge
from sparsec.lower.decode.choice import Choice
from sparsec.lower.gathered import chunks
from sparsec.lower.gathered import query_outer as gathered
from sparsec.lower.gathered.chunks import Frame
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.rows import one_token
from sparsec.lower.scalars import add, ceil_div, least, mul, sub
from sparsec.lower.scan.cell import padded
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program
from sparsec.tile.schedule import Schedule


def fits(spec: GatheredAttention) -> str | None:
    """Why a spec keeps the forward's kernel; None where it has splits."""
    if spec.chunk < 16:
        return f"several chunks of {spec.chunk} share a tile of keys"
    if spec.per == "chunk" and spec.sink not in (None, "zero"):
        return "every chunk has a given sink"
    return None


def lower(spec: GatheredAttention, schedule: Schedule, whole: bool = True, choice: Choice | None = None) -> Lowered:
    """A program per (token, unit of heads and split, sequence), and where the ``whole`` is asked for, the merge.

    A split that is the only one leaves the whole itself.
    """
    if whole and schedule.splits == 1:
        return Lowered((Step(_partial(spec, schedule, choice, alone=True), schedule),))
    return decode_merge.finished(merged(spec), schedule, Step(_partial(spec, schedule, choice), schedule), whole)


def merged(spec: GatheredAttention) -> GatheredAttention:
    """The spec of the merge: the sink of a chunk is in its part already."""
    return replace(spec, sink=None) if spec.per == "chunk" else spec


def _partial(spec: GatheredAttention, schedule: Schedule, choice: Choice | None, alone: bool = False) -> Program:
    found, share, splits = decode_merge.parts(spec, schedule.splits), chunks.sharing(spec), schedule.splits
    with tile.Builder() as builder:
        cuts, number = -(-share // schedule.rows), tile.program_id(1)
        split = tile.apply(Fn.TRUNCMOD, number, splits)
        number = tile.apply(Fn.TRUNCDIV, number, splits)
        at = chunks.unit(spec, tile.apply(Fn.TRUNCDIV, number, cuts))
        head = add(at.head, mul(tile.apply(Fn.TRUNCMOD, number, cuts), schedule.rows)) if cuts > 1 else at.head
        limit = add(at.head, share) if share % schedule.rows else None
        rows = one_token(builder.axis("m", schedule.rows), tile.program_id(0), head, limit)
        own = replace(spec, sink=None) if spec.per == "joint" and not alone else spec
        f = chunks.frame(builder, own, schedule, rows, tile.program_id(2), at, 0)
        slots = _Slots(f, split, choice)
        outs, lse = softmax.finish(_joint(f, slots), f.sink) if spec.per == "joint" else (_weighed(f, slots), None)
        if alone:
            chunks.write(f, outs, lse)
        else:
            decode_merge.write(f, found, split, outs, lse)
        grid = (tile.param("TQ"), tile.const(spec.heads // share * cuts * splits), tile.param("B"))
        gone = {*(() if alone else (spec.out, spec.lse)), *((spec.indices, spec.weights) if choice else ())}
        tensors = [*(t for n, t in f.tensors.items() if n not in gone), *(() if alone else found.tensors)]
        tensors += [choice.tensor] if choice else []
        return builder.program(f"{spec.name}_parts", tensors, [(n, "int32") for n in chunks.PARAMS], grid)


def _joint(f: Frame, slots: _Slots) -> list[Node]:
    """One softmax over this split's tiles."""
    parts = chunks.parts(f)

    def visit(n: Node, *carried: Node) -> Sequence[Node]:
        chunk = slots.chunk(tile.apply(Fn.TRUNCDIV, n, parts))
        part = tile.apply(Fn.TRUNCMOD, n, parts) if parts > 1 else tile.const(0)
        return chunks.joint_step(f, carried, *gathered.scores_at(f, chunk, part))

    first, stop = slots.share(parts)
    return tile.loop(first, stop, 1, chunks.start(f), visit, f.schedule.stages)


def _weighed(f: Frame, slots: _Slots) -> list[Node]:
    """The weighted sum of this split's chunks, each under a softmax of its own."""

    def visit(slot: Node, *accs: Node) -> Sequence[Node]:
        chunk, weight = slots.chunk(slot), slots.weight(slot)
        weight = tile.apply(Fn.WHERE, tile.apply(Fn.LE, 0, chunk), weight, 0.0)
        return chunks.weigh_chunk(f, accs, weight, lambda part: gathered.scores_at(f, chunk, part))

    first, stop = slots.share()
    inits = [tile.full(0.0, f.rows.axis, e.axis) for e in f.values]
    return tile.loop(first, stop, 1, inits, visit, f.schedule.stages if chunks.parts(f) == 1 else None)


class _Slots:
    """A split's slots of the list: read at once where all lists have as many and a slot is one turn, or made here."""

    def __init__(self, f: Frame, split: Node, choice: Choice | None) -> None:
        self.f, self.split, self.choice = f, split, choice
        self.first, self.stop = self.share()
        self.chunks: Node | None = None
        self.weights: Node | None = None
        if choice is not None:
            self.first = tile.const(0)
            self.chunks, self.weights = choice.numbers(f)
        elif f.spec.counts is None and f.schedule.split_dims and chunks.parts(f) == 1:
            axis = tile.Builder.current().axis("t", padded(-(-f.spec.slots // f.schedule.splits)))
            self.chunks = self._read(f.spec.indices, axis, -1)
            self.weights = self._read(f.spec.weights, axis, 0.0) if f.spec.weights is not None else None

    def _read(self, name: str, axis: Axis, other: float) -> Node:
        place = (self.f.batch, self.f.rows.token, self.f.listed)
        return ahead.turns(self.f.tensors[name], place, self.first, axis, self.stop, other)

    def share(self, parts: int = 1) -> tuple[Node, Node]:
        """The steps of this split, ``parts`` for each slot."""
        count = mul(gathered.count(self.f), parts)
        per = ceil_div(count, self.f.schedule.splits)
        first = least(mul(self.split, per), count)
        return first, least(add(first, per), count)

    def chunk(self, slot: Node) -> Node:
        """The chunk in a slot; -1 for none."""
        if self.chunks is None:
            return gathered.chunk_at(self.f, slot)
        return ahead.turn(self.chunks, sub(slot, self.first))

    def weight(self, slot: Node) -> Node:
        """Its weight."""
        f, name = self.f, self.f.spec.weights
        assert name is not None
        if self.weights is None:
            return tile.load(f.tensors[name], f.batch, f.rows.token, f.listed, slot)
        return ahead.turn(self.weights, sub(slot, self.first))
