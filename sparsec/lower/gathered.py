"""Attention over chosen chunks. Query-outer: a program per token and unit of heads walks its own list.

The other loop order, tile-union, is in ``sparsec.lower.tile_union``; it needs a kernel before it (``prelude``) and
buffers between the two (``scratch``).
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower import chunks, softmax, tile_union, union_list
from sparsec.lower.chunks import Frame
from sparsec.lower.rows import one_token
from sparsec.lower.scalars import add, both, ceil_div, least, most, mul
from sparsec.plan.plan import Buffer
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program
from sparsec.tile.schedule import Schedule, ScheduleError


def lower(spec: GatheredAttention, schedule: Schedule) -> Program:
    """The attention kernel; with ``order = "tile_union"`` it reads what ``prelude`` writes into ``scratch``."""
    check(spec, schedule)
    if schedule.order == "tile_union":
        return tile_union.lower(spec, schedule)
    with tile.Builder() as builder:
        f = _frame(builder, spec, schedule)
        packed = schedule.block > spec.chunk and schedule.block % spec.chunk == 0 and spec.per == "joint"
        outs, lse = _joint(f, packed) if spec.per == "joint" else (_per_chunk(f), None)
        chunks.write(f, outs, lse)
        units = _units(spec, schedule) * _value_blocks(spec, schedule)
        grid = (tile.param("TQ"), tile.const(units), tile.param("B"))
        params = [(name, "int32") for name in chunks.PARAMS]
        return builder.program(spec.name, list(f.tensors.values()), params, grid)


def prelude(spec: GatheredAttention, schedule: Schedule) -> tuple[Program, ...]:
    """Programs that must run before the kernel, in order."""
    return (union_list.lower(spec, schedule),) if schedule.order == "tile_union" else ()


def scratch(spec: GatheredAttention, schedule: Schedule) -> tuple[Buffer, ...]:
    """Buffers that the prelude writes and the kernel reads, of size O(T k)."""
    return union_list.scratch(spec, schedule) if schedule.order == "tile_union" else ()


def check(spec: GatheredAttention, schedule: Schedule) -> None:
    """Refuse a schedule that cannot carry this spec out."""
    rows, block = schedule.rows, schedule.block
    if schedule.order not in ("query_outer", "tile_union"):
        raise ScheduleError(f"gathered attention has no loop order {schedule.order!r}; use query_outer or tile_union")
    if schedule.value_block and spec.value_dim % schedule.value_block:
        raise ScheduleError(f"value_block {schedule.value_block} does not divide the value dim {spec.value_dim}")
    if schedule.split_dims and (rows < 16 or block < 16 or rows & (rows - 1) or block & (block - 1)):
        raise ScheduleError(f"{rows} rows x {block} keys do not fill tensor-core tiles: powers of two from 16 on do")
    if schedule.order == "tile_union":
        tile_union.check(spec, schedule)


def _value_blocks(spec: GatheredAttention, schedule: Schedule) -> int:
    return spec.value_dim // schedule.value_block if schedule.value_block else 1


def _units(spec: GatheredAttention, schedule: Schedule) -> int:
    """Programs per token: units of shared lists, each cut into row tiles."""
    share = chunks.sharing(spec)
    return spec.heads // share * -(-share // schedule.rows)


def _frame(builder: tile.Builder, spec: GatheredAttention, schedule: Schedule) -> Frame:
    share, blocks = chunks.sharing(spec), _value_blocks(spec, schedule)
    cuts = -(-share // schedule.rows)
    number = tile.program_id(1)
    base = mul(tile.apply(Fn.TRUNCMOD, number, blocks), schedule.value_block) if blocks > 1 else 0
    number = tile.apply(Fn.TRUNCDIV, number, blocks)
    at = chunks.unit(spec, tile.apply(Fn.TRUNCDIV, number, cuts))
    head = add(at.head, mul(tile.apply(Fn.TRUNCMOD, number, cuts), schedule.rows)) if cuts > 1 else at.head
    limit = add(at.head, share) if share % schedule.rows else None
    rows = one_token(builder.axis("m", schedule.rows), tile.program_id(0), head, limit)
    return chunks.frame(builder, spec, schedule, rows, tile.program_id(2), at, base)


def _count(f: Frame) -> Node:
    """How many slots of the list are to be read."""
    slots = tile.const(f.spec.slots)
    if f.spec.counts is None:
        return slots
    return least(tile.load(f.tensors[f.spec.counts], f.batch, f.rows.token, f.listed), slots)


def _joint(f: Frame, packed: bool) -> tuple[list[Node], Node]:
    """One softmax over all chosen chunks."""
    state, spec = chunks.start(f), f.spec
    if packed:
        per_step = f.schedule.block // spec.chunk
        steps = ceil_div(_count(f), per_step)
        state = tile.loop(0, steps, 1, state, lambda n, *c: _packed_step(f, n, c), f.schedule.stages)
    else:
        parts = chunks.parts(f)

        def visit(n: Node, *carried: Node) -> Sequence[Node]:
            chunk = _chunk(f, tile.apply(Fn.TRUNCDIV, n, parts))
            part = tile.apply(Fn.TRUNCMOD, n, parts) if parts > 1 else tile.const(0)
            return chunks.joint_step(f, carried, *_scores(f, chunk, part))

        state = tile.loop(0, mul(_count(f), parts), 1, state, visit, f.schedule.stages)
    return softmax.finish(state, f.sink is not None)


def _chunk(f: Frame, slot: Node) -> Node:
    return tile.load(f.tensors[f.spec.indices], f.batch, f.rows.token, f.listed, slot)


def _scores(f: Frame, chunk: Node, part: Node) -> tuple[Node, Node, float]:
    """Keys and masked scores of one part of a chunk; an id of -1 reads chunk 0 and hides all of it."""
    return chunks.part_scores(f, most(chunk, 0), part, tile.apply(Fn.LE, 0, chunk))


def _packed_step(f: Frame, n: Node, state: Sequence[Node]) -> Sequence[Node]:
    """A tile of keys from several small chunks."""
    spec, lane = f.spec, tile.iota(f.keys)
    slot = add(mul(n, f.schedule.block // spec.chunk), tile.apply(Fn.TRUNCDIV, lane, spec.chunk))
    place = (f.batch, f.rows.token, f.listed, slot)
    chunk = tile.load(f.tensors[spec.indices], *place, bounds={3: _count(f)}, other=-1)
    key = mul(most(chunk, 0), spec.chunk)
    if spec.chunk > 1:
        key = add(key, tile.apply(Fn.TRUNCMOD, lane, spec.chunk))
    scores, scale = chunks.logits(f, key)
    mask = both(chunks.visible(f, key), tile.apply(Fn.LE, 0, chunk))
    return chunks.joint_step(f, state, key, chunks.hide(scores, mask, None), scale)


def _per_chunk(f: Frame) -> list[Node]:
    """A softmax inside each chunk, then the weighted sum."""

    def visit(slot: Node, *accs: Node) -> Sequence[Node]:
        assert f.spec.weights is not None, "a softmax per chunk needs weights"
        chunk = _chunk(f, slot)
        weight = tile.load(f.tensors[f.spec.weights], f.batch, f.rows.token, f.listed, slot)
        weight = tile.apply(Fn.WHERE, tile.apply(Fn.LE, 0, chunk), weight, 0.0)
        return chunks.weigh_chunk(f, accs, weight, lambda part: _scores(f, chunk, part))

    inits = [tile.full(0.0, f.rows.axis, e.axis) for e in f.values]
    return tile.loop(0, _count(f), 1, inits, visit, f.schedule.stages if chunks.parts(f) == 1 else None)


def default(spec: GatheredAttention, target: str) -> Schedule:
    """Query-outer where a token's heads fill tensor-core tiles or on a CPU; tile-union elsewhere."""
    share, triton = chunks.sharing(spec), target.startswith("triton")
    if not triton:
        return Schedule(rows=share, block=_key_block(spec, 64), lanes=("n", "e"), split_dims=False)
    if spec.chunk < 16:
        return Schedule(rows=_row_tile(share), block=64, warps=4, stages=2)
    return tile_union.default(spec, target)


def _row_tile(share: int) -> int:
    """Rows of a tensor-core tile for so many heads."""
    return min(64, max(16, 1 << (share - 1).bit_length()))


def _key_block(spec: GatheredAttention, most_keys: int) -> int:
    """The largest divisor of the chunk up to a limit; several chunks per tile where they are tiny."""
    if spec.per == "joint" and spec.chunk < 16:
        return spec.chunk * (16 // spec.chunk)
    return max(d for d in range(1, min(spec.chunk, most_keys) + 1) if spec.chunk % d == 0)


def space(spec: GatheredAttention, target: str) -> dict[str, tuple[object, ...]]:
    """Loop order, tile sizes, value blocks, warps and stages."""
    share = chunks.sharing(spec)
    if not target.startswith("triton"):
        blocks = tuple(b for b in (8, 16, 32, 64) if spec.chunk % b == 0) or (_key_block(spec, 64),)
        return {"order": ("query_outer",), "rows": (share,), "block": blocks, "lanes": (("n", "e"), ("e", "n"))}
    if spec.chunk < 16:
        return {"order": ("query_outer",), "rows": (_row_tile(share),), "block": (32, 64, 128), "warps": (2, 4, 8)}
    blocks = tuple(b for b in (16, 32, 64, 128) if spec.chunk % b == 0)
    rows = tuple(sorted({_row_tile(share), 32, 64, 128}))
    return {
        "order": ("query_outer", "tile_union"),
        "rows": rows,
        "block": blocks,
        "value_block": tuple(b for b in (0, 64) if not b or (spec.value_dim % b == 0 and b < spec.value_dim)),
        "descriptors": (False, True),
        "warps": (1, 2, 4, 8),
        "stages": (1, 2, 3, 4),
    }
