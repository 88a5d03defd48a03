"""Attention over chosen chunks for a few queries: programs share a token's list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sparsec.lower import softmax
from sparsec.lower.decode import merge as decode_merge
from sparsec.lower.gathered import chunks
from sparsec.lower.gathered import query_outer as gathered
from sparsec.lower.gathered.chunks import Frame
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.rows import one_token
from sparsec.lower.scalars import add, ceil_div, least, mul
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program
from sparsec.tile.schedule import Schedule


def fits(spec: GatheredAttention) -> str | None:
    """Why a spec keeps the forward's kernel; None where it has splits."""
    if spec.chunk < 16:
        return f"several chunks of {spec.chunk} share a tile of keys"
    if spec.per == "chunk" and spec.sink not in (None, "zero"):
        return "every chunk has a given sink"
    return None


def lower(spec: GatheredAttention, schedule: Schedule, whole: bool = True) -> Lowered:
    """A program per (token, unit of heads and split, sequence), and where the ``whole`` is asked for, the merge."""
    return decode_merge.finished(merged(spec), schedule, Step(_partial(spec, schedule), schedule), whole)


def merged(spec: GatheredAttention) -> GatheredAttention:
    """The spec of the merge: the sink of a chunk is in its part already."""
    return replace(spec, sink=None) if spec.per == "chunk" else spec


def _partial(spec: GatheredAttention, schedule: Schedule) -> Program:
    found, share, splits = decode_merge.parts(spec, schedule.splits), chunks.sharing(spec), schedule.splits
    with tile.Builder() as builder:
        cuts, number = -(-share // schedule.rows), tile.program_id(1)
        split = tile.apply(Fn.TRUNCMOD, number, splits)
        number = tile.apply(Fn.TRUNCDIV, number, splits)
        at = chunks.unit(spec, tile.apply(Fn.TRUNCDIV, number, cuts))
        head = add(at.head, mul(tile.apply(Fn.TRUNCMOD, number, cuts), schedule.rows)) if cuts > 1 else at.head
        limit = add(at.head, share) if share % schedule.rows else None
        rows = one_token(builder.axis("m", schedule.rows), tile.program_id(0), head, limit)
        own = replace(spec, sink=None) if spec.per == "joint" else spec
        f = chunks.frame(builder, own, schedule, rows, tile.program_id(2), at, 0)
        outs, lse = softmax.finish(_joint(f, split), None) if spec.per == "joint" else (_weighed(f, split), None)
        decode_merge.write(f, found, split, outs, lse)
        grid = (tile.param("TQ"), tile.const(spec.heads // share * cuts * splits), tile.param("B"))
        tensors = [*(t for n, t in f.tensors.items() if n not in (spec.out, spec.lse)), *found.tensors]
        return builder.program(f"{spec.name}_parts", tensors, [(n, "int32") for n in chunks.PARAMS], grid)


def _joint(f: Frame, split: Node) -> list[Node]:
    """One softmax over this split's tiles."""
    parts = chunks.parts(f)

    def visit(n: Node, *carried: Node) -> Sequence[Node]:
        chunk = gathered.chunk_at(f, tile.apply(Fn.TRUNCDIV, n, parts))
        part = tile.apply(Fn.TRUNCMOD, n, parts) if parts > 1 else tile.const(0)
        return chunks.joint_step(f, carried, *gathered.scores_at(f, chunk, part))

    first, stop = _share(f, split, mul(gathered.count(f), parts))
    return tile.loop(first, stop, 1, chunks.start(f), visit, f.schedule.stages)


def _weighed(f: Frame, split: Node) -> list[Node]:
    """The weighted sum of this split's chunks, each under a softmax of its own."""

    def visit(slot: Node, *accs: Node) -> Sequence[Node]:
        assert f.spec.weights is not None
        chunk = gathered.chunk_at(f, slot)
        weight = tile.load(f.tensors[f.spec.weights], f.batch, f.rows.token, f.listed, slot)
        weight = tile.apply(Fn.WHERE, tile.apply(Fn.LE, 0, chunk), weight, 0.0)
        return chunks.weigh_chunk(f, accs, weight, lambda part: gathered.scores_at(f, chunk, part))

    first, stop = _share(f, split, gathered.count(f))
    inits = [tile.full(0.0, f.rows.axis, e.axis) for e in f.values]
    return tile.loop(first, stop, 1, inits, visit, f.schedule.stages if chunks.parts(f) == 1 else None)


def _share(f: Frame, split: Node, count: Node) -> tuple[Node, Node]:
    """The steps of one split."""
    per = ceil_div(count, f.schedule.splits)
    first = least(mul(split, per), count)
    return first, least(add(first, per), count)
