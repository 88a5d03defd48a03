"""Attention over chosen chunks, key-outer: a program gathers queries that chose one chunk and reads the chunk once.

Pays where neighbouring queries choose different chunks and few heads share a list. Every choice gives a partial output
and log-sum-exp (``sparsec.lower.gathered.partials``); ``sparsec.lower.inverse.index`` finds who chose a chunk,
``sparsec.lower.gathered.slot_merge`` puts partials together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsec.lower import descriptors
from sparsec.lower.gathered import box_merge, chunks, flat, partials, slot_merge, stretch
from sparsec.lower.gathered.chunks import Frame, Unit
from sparsec.lower.gathered.stretch import Stretch
from sparsec.lower.inverse import index as inverse
from sparsec.lower.inverse.index import Inverse
from sparsec.lower.rows import Rows
from sparsec.lower.scalars import add, both, least, mul, sub
from sparsec.plan.specs import GatheredAttention
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule, ScheduleError

WALKED = 128
"""Rows of a tile that groups walk over."""


@dataclass(frozen=True, slots=True)
class Item:
    """A tile of queries that chose a chunk: entries ``first … first + count - 1``."""

    chunk: Node
    first: Node
    count: Node


def check(spec: GatheredAttention, schedule: Schedule) -> None:
    """Refuse a schedule that cannot carry this spec out."""
    group = spec.heads // spec.kv_heads
    if schedule.rows < group:
        raise ScheduleError(f"{schedule.rows} rows do not hold the {group} heads of a key/value head")


def lower(spec: GatheredAttention, schedule: Schedule, again: bool = False) -> Program:
    """The kernel of one (tile of queries, key/value head, batch) per grid point, or of one walk over such tiles.

    ``again`` is the one that reads sets in doubt with a maximum.
    """
    alone = replace(spec, sink=None)  # it joins in the merge: beside a large one partials are too small to be stored
    how = replace(schedule, maximum=schedule.maximum or again)
    with tile.Builder() as builder:
        found, results = inverse.inverse(spec, schedule), partials.partials(spec, schedule)
        blocks = spec.value_dim // schedule.value_block if schedule.value_block else 1
        number, batch = tile.program_id(1), tile.program_id(2)
        base = mul(tile.apply(Fn.TRUNCMOD, number, blocks), schedule.value_block) if blocks > 1 else 0
        key_head = tile.apply(Fn.TRUNCDIV, number, blocks)
        at = (batch, key_head if found.sets > 1 else tile.const(0))
        inputs: list[Tensor] = []
        first, used = tile.program_id(0), tile.load(found.used, *at)

        def visit(n: Node) -> Sequence[Node]:
            item = _item(found, at, n if how.has_roles else add(first, n))
            axis = builder.axis("m", 1 << (schedule.rows - 1).bit_length())  # those past a tile's rows are no entry's
            rows, place = _rows(spec, how, found, at, item, key_head, axis)
            f = chunks.frame(builder, alone, how, rows, batch, Unit(tile.const(0), key_head, rows.head), base)
            partials.write(f, results, place, *_read(f, item, found, at))
            inputs.extend(_inputs(alone, f))
            return []

        tiles, heads = inverse.tile_count(spec, found), spec.kv_heads * blocks
        if how.has_roles:
            if again and found.doubt is not None:
                used = mul(used, tile.load(found.doubt, *at))
            tiles = least(tiles, walkers(heads))
            tile.loop(first, used, walkers(heads), [], visit)
        else:  # n is 0: what depends on it stays under the condition
            tile.loop(0, tile.apply(Fn.LT, first, used), 1, [], visit)
        doubt = [] if found.doubt is None else [found.doubt]
        tensors = [*inputs, found.entries, found.tiles, found.used, *doubt, *results.tensors]
        grid, name = (tiles, tile.const(heads), tile.param("B")), f"{spec.name}_again" if again else spec.name
        return builder.program(name, tensors, [(name, "int32") for name in chunks.PARAMS], grid)


def walkers(heads: int) -> int:
    """Programs of a head that share its tiles where a warp loads ahead, also from one tile to the next."""
    return max(1, box_merge.PROCESSORS // heads)


def _inputs(spec: GatheredAttention, f: Frame) -> list[Tensor]:
    """What is read of the spec's own tensors."""
    others = {spec.indices, spec.counts, spec.weights, spec.out, spec.lse}
    return [t for t in f.tensors.values() if t.name not in others]


def _item(found: Inverse, at: tuple[Node, Node], number: Node) -> Item:
    """A tile of a set."""
    chunk, count = (tile.load(found.tiles, *at, number, tile.const(k)) for k in range(2))
    return Item(chunk, mul(number, found.per_tile), count)


def _rows(
    spec: GatheredAttention,
    schedule: Schedule,
    found: Inverse,
    at: tuple[Node, Node],
    item: Item,
    key_head: Node,
    axis: Axis,
) -> tuple[Rows, Node]:
    """The query rows of a tile, each choice with the heads that share its list, and the place of each row's partial."""
    share = chunks.sharing(spec)
    lane = tile.apply(Fn.TRUNCDIV, tile.iota(axis), share)
    there = tile.apply(Fn.LT, lane, item.count)
    number = add(item.first, least(lane, found.per_tile - 1))
    chosen = tile.load(found.entries, *at, number) if schedule.has_roles else _entries(found, at, number)
    entry = tile.apply(Fn.WHERE, there, chosen, 0)
    token = tile.apply(Fn.TRUNCDIV, entry, found.per_token)
    local = tile.apply(Fn.TRUNCMOD, tile.iota(axis), share)
    by_slot = partials.by_slot(schedule)
    if not by_slot:
        place = tile.apply(Fn.WHERE, there, add(mul(entry, share), local), partials.count(spec))
    if found.lists > 1:
        local = tile.apply(Fn.TRUNCDIV, sub(entry, mul(token, found.per_token)), spec.slots)
    if by_slot:
        slot = tile.apply(Fn.TRUNCMOD, entry, spec.slots)
        place = tile.apply(Fn.WHERE, there, partials.row(spec, local, slot, token), partials.count(spec))
    head = add(mul(key_head, spec.heads // spec.kv_heads), local)
    last = add(item.first, sub(item.count, 1))
    ends = [tile.apply(Fn.TRUNCDIV, tile.load(found.entries, *at, x), found.per_token) for x in (item.first, last)]
    token = tile.apply(Fn.WHERE, there, token, tile.param("TQ"))
    return Rows(axis, token, head, tile.const(0), ends[0], 1, {1: tile.param("TQ")}, ends[1]), place


def _entries(found: Inverse, at: tuple[Node, Node], number: Node) -> Node:
    """Entries of a set, read by two threads each and then handed out.

    A tile of fewer numbers than threads Triton loads again in every thread that needs one, with all that follows from
    it, and keeps there: the addresses of eight rows a thread, which spilled at 128 registers.
    """
    twice = tile.Builder.current().axis("twice", 2)
    place = add(number, tile.apply(Fn.TRUNCDIV, tile.iota(twice), twice.size))
    return tile.reduce("max", tile.load(found.entries, *at, place), twice)


def _read(f: Frame, item: Item, found: Inverse, at: tuple[Node, Node]) -> tuple[list[Node], Node | None]:
    """The softmax of the chunk's keys, and the rows' largest magnitude where that is known."""
    size, state = f.spec.chunk, chunks.start(f)
    if size == f.schedule.block and not f.schedule.has_roles:
        return chunks.joint_step(f, state, *chunks.part_scores(f, item.chunk, tile.const(0))), None
    low = mul(item.chunk, size)
    high = add(low, size)
    if size % f.schedule.block == 0:
        whole = Stretch(low, high)
        if f.schedule.has_roles and not f.schedule.maximum:
            state, largest, unsafe = stretch.read_unchecked(f, whole)
            _doubt(found, at, unsafe)
            return state, largest
        if f.schedule.has_roles:
            return stretch.read_once(f, whole, state), None
        return (stretch.read(f, whole, state), None) if f.schedule.maximum else stretch.read_flat(f, whole)

    def among(key: Node) -> Node:
        return both(tile.apply(Fn.LE, low, key), tile.apply(Fn.LT, key, high))

    return stretch.read(f, Stretch(low, high, among, aligned=False), state), None


def _doubt(found: Inverse, at: tuple[Node, Node], unsafe: Node | None) -> None:
    """Rows that are unsafe all write the same: their set is in doubt."""
    assert found.doubt is not None
    if unsafe is not None:
        number = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, unsafe, 1), at[1], found.sets)
        tile.store(found.doubt, at[0], number, value=unsafe, bounds={1: found.sets})


def default(spec: GatheredAttention, target: str) -> Schedule:
    """A warp that loads for groups that walk, where that was measured; else what is best where all warps are alike."""
    found = alike(spec, target)
    plain = flat.fits(spec) and spec.softcap is None and spec.bias is None and not spec.captures
    measured = min(spec.head_dim, spec.value_dim) >= 64
    return walk(spec, found) if plain and measured and may_walk(spec, target) else found


def may_walk(spec: GatheredAttention, target: str) -> bool:
    """Whether a warp that loads for the others is among the choices: whole rows of half precision, on Hopper."""
    whole = all(16 <= d <= 128 and d & (d - 1) == 0 for d in (spec.head_dim, spec.value_dim))
    fits = spec.chunk % 64 == 0 and spec.heads // spec.kv_heads <= WALKED
    return target == "triton:sm_90" and spec.dtype != "float32" and whole and fits


def walk(spec: GatheredAttention, base: Schedule) -> Schedule:
    """Two groups of 64 rows, whose keys come a tile ahead, and their own rows as well; three where heads are narrow.

    Three groups read a chunk's keys less often: heads of 64 0.319 ms for 0.362, while those of 128 spill. Next rows are
    asked for beneath the second products: 0.308 ms for 0.332, at 128 0.438 for 0.517. So does a list for each head have
    a merge that walks: MoBA, three blocks, T16384 0.239 ms for 0.279, at T8192 0.132 for 0.137, shorter ones alike.
    """
    tiles = replace(base, rows=WALKED, block=128 if spec.chunk % 128 == 0 else 64, warps=8, stages=2, registers=168)
    if max(spec.head_dim, spec.value_dim) <= 64:
        tiles = replace(base, rows=192, block=64, warps=12, stages=4, registers=128)
    merge = "walk" if spec.scope == "head" and box_merge.fits(spec) else "alike"
    walks = replace(tiles, descriptors=True, producer=True, maximum=not flat.fits(spec), value_block=0)
    return replace(walks, peel=True, late=True, merge=merge)


def alike(spec: GatheredAttention, target: str) -> Schedule:
    """64 rows, or as many as hold a key/value head's heads, and a chunk's keys up to 64 at a time.

    128 registers a thread hide latency best, by twice the warps. At head dims of 128 Hopper's kernels do with them
    without a maximum and with 32 keys at a time, three such tiles under way; or where the merge is small: there 128
    rows read a chunk at a time, so that it comes from L2 half as often.
    """
    rows = max(64, 1 << (spec.heads // spec.kv_heads - 1).bit_length())
    even = [b for b in (16, 32, 64) if spec.chunk % b == 0]
    block = max(even) if even else min(64, max(16, 1 << (spec.chunk - 1).bit_length()))
    found = Schedule(order="key_outer", rows=rows, block=block, warps=4 if rows <= 64 else 8, stages=2)
    widest = max(spec.head_dim, spec.value_dim)
    if not descriptors.pay(target, spec.dtype, spec.head_dim, spec.value_dim):
        return replace(found, warps=8) if widest > 64 else found
    if 64 < widest <= 128 and target == "triton:sm_90" and flat.fits(spec) and (rows, spec.chunk % 32) == (64, 0):
        return replace(found, descriptors=True, block=32, stages=3, registers=128, maximum=False)
    if widest > 64 and target == "triton:sm_90" and slot_merge.is_little(spec):
        return replace(found, descriptors=True, rows=max(rows, 128), warps=8, registers=128)
    if widest > 64:
        return replace(found, descriptors=True, stages=3)
    return replace(found, descriptors=True, stages=1, registers=128)
