"""Attention over chosen chunks, query-outer: a program per token and unit of heads walks the token's own list."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparsec.lower import softmax
from sparsec.lower.gathered import chunks, flat
from sparsec.lower.gathered.chunks import Frame, Unit
from sparsec.lower.rows import Rows, one_token
from sparsec.lower.scalars import add, both, ceil_div, least, most, mul
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program
from sparsec.tile.schedule import Schedule

Step = Callable[..., list[Node]]
"""One tile of keys: frame, state, keys, scores and their scale -> state."""


def lower(spec: GatheredAttention, schedule: Schedule) -> Program:
    """The kernel of one (token, unit of heads, batch) per grid point."""
    with tile.Builder() as builder:
        f = _frame(builder, spec, schedule)
        outs, lse = _joint(f) if spec.per == "joint" else (_per_chunk(f), None)
        chunks.write(f, outs, lse)
        units = tiles(spec, schedule) * _value_blocks(spec, schedule)
        grid = (tile.param("TQ"), tile.const(units), tile.param("B"))
        params = [(name, "int32") for name in chunks.PARAMS]
        return builder.program(spec.name, list(f.tensors.values()), params, grid)


def _value_blocks(spec: GatheredAttention, schedule: Schedule) -> int:
    return spec.value_dim // schedule.value_block if schedule.value_block else 1


def tiles(spec: GatheredAttention, schedule: Schedule) -> int:
    """Row tiles of a token: units of shared lists, each cut into row tiles."""
    share = chunks.sharing(spec)
    return spec.heads // share * -(-share // schedule.rows)


def row_tile(builder: tile.Builder, spec: GatheredAttention, schedule: Schedule, number: Node) -> tuple[Rows, Unit]:
    """Row tile ``number`` of the program's token, and the unit that it is of."""
    share = chunks.sharing(spec)
    cuts = -(-share // schedule.rows)
    at = chunks.unit(spec, tile.apply(Fn.TRUNCDIV, number, cuts))
    head = add(at.head, mul(tile.apply(Fn.TRUNCMOD, number, cuts), schedule.rows)) if cuts > 1 else at.head
    limit = add(at.head, share) if share % schedule.rows else None
    return one_token(builder.axis("m", schedule.rows), tile.program_id(0), head, limit), at


def _frame(builder: tile.Builder, spec: GatheredAttention, schedule: Schedule) -> Frame:
    blocks, number = _value_blocks(spec, schedule), tile.program_id(1)
    base = mul(tile.apply(Fn.TRUNCMOD, number, blocks), schedule.value_block) if blocks > 1 else 0
    rows, at = row_tile(builder, spec, schedule, tile.apply(Fn.TRUNCDIV, number, blocks))
    return chunks.frame(builder, spec, schedule, rows, tile.program_id(2), at, base)


def count(f: Frame) -> Node:
    """How many slots of the list are to be read."""
    slots = tile.const(f.spec.slots)
    if f.spec.counts is None:
        return slots
    return least(tile.load(f.tensors[f.spec.counts], f.batch, f.rows.token, f.listed), slots)


def _joint(f: Frame) -> tuple[list[Node], Node]:
    """One softmax over all chosen chunks; several chunks share a tile of keys where they are small."""
    if not flat.wanted(f):
        return softmax.finish(_walk(f, 0, chunks.start(f), chunks.joint_step, f.schedule.stages), f.sink)
    state = _walk(f, 0, flat.start(f), flat.step, f.schedule.stages)
    state = flat.joint(f, state, lambda zero: _walk(f, zero, chunks.start(f), chunks.joint_step, 1))
    return softmax.finish(state, f.sink)


def _walk(f: Frame, first: tile.Value, state: Sequence[Node], step: Step, stages: int) -> list[Node]:
    """The state after every tile of keys of the token's list, from tile ``first`` on."""
    per_step = f.schedule.block // f.spec.chunk
    if per_step > 1 and f.schedule.block % f.spec.chunk == 0:
        steps = ceil_div(count(f), per_step)
        return tile.loop(first, steps, 1, state, lambda n, *c: step(f, c, *packed_scores(f, n)), stages)
    parts = chunks.parts(f)

    def visit(n: Node, *carried: Node) -> Sequence[Node]:
        chunk = chunk_at(f, tile.apply(Fn.TRUNCDIV, n, parts))
        part = tile.apply(Fn.TRUNCMOD, n, parts) if parts > 1 else tile.const(0)
        return step(f, carried, *scores_at(f, chunk, part))

    return tile.loop(first, mul(count(f), parts), 1, state, visit, stages)


def chunk_at(f: Frame, slot: Node) -> Node:
    """The chunk in a slot of the token's list; -1 for none."""
    return tile.load(f.tensors[f.spec.indices], f.batch, f.rows.token, f.listed, slot)


def scores_at(f: Frame, chunk: Node, part: Node) -> tuple[Node, Node, float]:
    """Keys and masked scores of one part of a chunk; an id of -1 reads chunk 0 and hides all of it."""
    return chunks.part_scores(f, most(chunk, 0), part, tile.apply(Fn.LE, 0, chunk))


def packed_scores(f: Frame, n: Node) -> tuple[Node, Node, float]:
    """Keys and masked scores of a tile of keys from several small chunks."""
    spec, lane = f.spec, tile.iota(f.keys)
    slot = add(mul(n, f.schedule.block // spec.chunk), tile.apply(Fn.TRUNCDIV, lane, spec.chunk))
    place = (f.batch, f.rows.token, f.listed, slot)
    chunk = tile.load(f.tensors[spec.indices], *place, bounds={3: count(f)}, other=-1)
    key = mul(most(chunk, 0), spec.chunk)
    if spec.chunk > 1:
        key = add(key, tile.apply(Fn.TRUNCMOD, lane, spec.chunk))
    scores, scale = chunks.logits(f, key)
    mask = both(chunks.visible(f, key), tile.apply(Fn.LE, 0, chunk))
    return key, chunks.hide(scores, mask, None), scale


def _per_chunk(f: Frame) -> list[Node]:
    """A softmax inside each chunk, then the weighted sum."""

    def visit(slot: Node, *accs: Node) -> Sequence[Node]:
        assert f.spec.weights is not None, "a softmax per chunk needs weights"
        chunk = chunk_at(f, slot)
        weight = tile.load(f.tensors[f.spec.weights], f.batch, f.rows.token, f.listed, slot)
        weight = tile.apply(Fn.WHERE, tile.apply(Fn.LE, 0, chunk), weight, 0.0)
        return chunks.weigh_chunk(f, accs, weight, lambda part: scores_at(f, chunk, part))

    inits = [tile.full(0.0, f.rows.axis, e.axis) for e in f.values]
    return tile.loop(0, count(f), 1, inits, visit, f.schedule.stages if chunks.parts(f) == 1 else None)
