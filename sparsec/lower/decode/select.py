"""The selector for a few queries: scores once, in programs that share the candidates, then the best of each share.

The heads of a group are the rows of a tile, so a key is read once for all of them. Scores of a step are written, fp32,
a number per head and summary; where they become probabilities, every share leaves its log-sum-exp too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsec.lower import softmax
from sparsec.lower.decode import merge as decode_merge
from sparsec.lower.gathered.gpu import row_tile
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.ranges import tile_ranges
from sparsec.lower.rows import Rows, one_token
from sparsec.lower.scalars import add, both, ceil_div, emit, least, most, mul, sub
from sparsec.lower.select import candidates, chosen
from sparsec.lower.select.candidates import Frame, as_keys, sharing
from sparsec.lower.select.streaming import _frame, _params, _without_constants
from sparsec.plan.specs import Piece, Selector
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import EMPTY_KEY, Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule

RANKED = 16
"""Candidates that join a list of the best at a time."""
LISTS = 8
"""Programs at least that share the ranking of a unit's candidates: each step waits for the one before."""


@dataclass(frozen=True, slots=True)
class Buffers:
    """What one program leaves for the next.

    Attributes:
        raw: scores ``[B, TQ, units or heads, N]``: base-two logits of every head under a softmax, else those of units.
        sums: base-two log-sum-exps ``[B, TQ, H, splits]``.
        best: rank keys ``[B, TQ, units, splits, slots]``, descending.
    """

    raw: Tensor
    sums: Tensor
    best: Tensor


def buffers(spec: Selector, splits: int) -> Buffers:
    """The buffers of one spec."""
    units, slots = spec.heads // sharing(spec), 1 << (spec.slots - 1).bit_length()
    scored = spec.heads if spec.softmax else units
    return Buffers(
        Tensor(f"{spec.name}_raw", "float32", ("B", "TQ", scored, spec.key_length)),
        Tensor(f"{spec.name}_sums", "float32", ("B", "TQ", spec.heads, splits)),
        Tensor(f"{spec.name}_best", "int64", ("B", "TQ", units, max(splits, LISTS), slots)),
    )


def fits(spec: Selector) -> str | None:
    """Why a spec keeps the forward's kernel; None where it has splits."""
    if spec.pool is not None and not spec.softmax:
        return "it pools scores that are no probabilities"
    if spec.head_weights is not None:
        return "an indexer weighs its heads"
    return "weights are shares of all that is eligible" if spec.weights == "softmax_all" else None


def lower(spec: Selector, schedule: Schedule, sums: Tensor | None = None) -> Lowered:
    """The programs in launch order; ``sums`` are an attention's log-sum-exps, which has left its logits too."""
    spec = _without_constants(spec)
    found = buffers(spec, schedule.splits)
    if sums is not None:
        found = replace(found, sums=sums)
    lists = max(schedule.splits, LISTS)
    ranked = replace(
        schedule, splits=lists, rows=1, block=RANKED, warps=1 if schedule.warps > 1 else schedule.warps, stages=1
    )
    merged = replace(ranked, warps=ranked.warps)
    steps = (
        *([Step(_scores(spec, schedule), schedule)] if sums is None else []),
        Step(_best(spec, ranked, found), ranked),
        Step(_merge(spec, merged), merged),
    )
    own = [found.raw, found.best, *([found.sums] if spec.softmax else [])]
    return Lowered(steps, decode_merge.scratch(own))


def _own(f: Frame, piece: Piece, limit: Node) -> tuple[Node, Node]:
    """The key tiles of this program's split."""
    ranges, splits = tile_ranges(piece, f.schedule.block, limit, f.env, f.tensors), f.schedule.splits
    start, stop = ranges[0].start, most(ranges[-1].stop, ranges[0].start)
    per = ceil_div(sub(stop, start), splits)
    first = least(add(start, mul(_split(splits), per)), stop)
    return first, least(add(first, per), stop)


def _split(splits: int) -> Node:
    return tile.apply(Fn.TRUNCMOD, tile.program_id(1), splits)


def _framed(builder: tile.Builder, spec: Selector, schedule: Schedule) -> Frame:
    """The frame of one token, whose program's second dimension counts units and splits."""
    f = _frame(builder, spec, replace(schedule, rows=1))
    share, token = sharing(spec), tile.program_id(0)
    head = mul(tile.apply(Fn.TRUNCDIV, tile.program_id(1), schedule.splits), share)
    key_head = tile.apply(Fn.TRUNCDIV, head, spec.heads // spec.kv_heads)
    position = add(token, tile.param("q_offset"))
    env = {**f.env, "h": head, "i": add(position, tile.iota(f.rows)), "i_lo": position, "i_hi": position}
    return replace(f, schedule=schedule, head=head, key_head=key_head, row=add(token, tile.iota(f.rows)), env=env)


def _grid(spec: Selector, splits: int) -> tuple[Node, Node, Node]:
    return tile.param("TQ"), tile.const(spec.heads // sharing(spec) * splits), tile.param("B")


def _scores(spec: Selector, schedule: Schedule) -> Program:
    """One (token, unit and split, sequence) per grid point scores its share of the summaries."""
    found, share = buffers(spec, schedule.splits), sharing(spec)
    with tile.Builder() as builder:
        f = _framed(builder, spec, schedule)
        size = row_tile(share) if schedule.split_dims else share
        limit = add(f.head, share) if share < size else None
        rows = one_token(builder.axis("r", size), tile.program_id(0), f.head, limit)
        place = rows.place(f.batch)
        queries = [tile.load(f.tensors[spec.q], *place, d.index(), bounds=rows.bounds) for d in f.dims]
        position = {"i": add(tile.program_id(0), tile.param("q_offset"))}
        f = replace(f, env={**f.env, **position})
        shown, length = (spec.visible if spec.softmax else spec.eligible), tile.param(spec.key_length)
        first, stop = _own(f, Piece(spec.keys, spec.keys, spec.key_length, as_keys(shown)), length)

        def visit(at: Node, *sums: Node) -> Sequence[Node]:
            number = add(mul(at, schedule.block), tile.iota(f.keys))
            logits = candidates.products(f, queries, number)
            return (
                _softmax(f, found, rows, number, logits, sums)
                if spec.softmax
                else _plain(f, found, rows, number, logits)
            )

        inits = [tile.full(softmax.HIDDEN, rows.axis), tile.full(0.0, rows.axis)] if spec.softmax else []
        sums = tile.loop(first, stop, 1, inits, visit, schedule.stages)
        if spec.softmax:
            value = _log(sums[0], sums[1])
            tile.store(found.sums, *place, _split(schedule.splits), value=value, bounds=rows.bounds)
        written = [found.raw, *([found.sums] if spec.softmax else [])]
        read = [f.tensors[spec.q], f.tensors[spec.keys]]
        grid = _grid(spec, schedule.splits)
        return builder.program(f"{spec.name}_scores", [*read, *written], _params(spec), grid)


def _softmax(f: Frame, found: Buffers, rows: Rows, number: Node, logits: Node, sums: Sequence[Node]) -> Sequence[Node]:
    """Keep every head's base-two logits, and the running maximum and sum."""
    logits = mul(logits, f.spec.scale * softmax.LOG2E)
    logits = tile.apply(Fn.WHERE, candidates._shown(f, number), logits, softmax.HIDDEN)
    bounds: dict[int, tile.Value] = {**rows.bounds, 3: tile.param(f.spec.key_length)}
    tile.store(found.raw, *rows.place(f.batch, number), value=logits, bounds=bounds)
    top, total = sums
    high = most(top, tile.reduce("max", logits, f.keys))
    more = tile.reduce("sum", tile.apply(Fn.EXP2, sub(logits, high)), f.keys)
    return [high, add(mul(total, tile.apply(Fn.EXP2, sub(top, high))), more)]


def _log(top: Node, total: Node) -> Node:
    """The log-sum-exp of a share; hidden where it saw nothing."""
    empty = tile.apply(Fn.LE, top, softmax.NOTHING)
    found = add(top, tile.apply(Fn.LOG2, tile.apply(Fn.WHERE, empty, 1.0, total)))
    return tile.apply(Fn.WHERE, empty, softmax.HIDDEN, found)


def _plain(f: Frame, found: Buffers, rows: Rows, number: Node, logits: Node) -> Sequence[Node]:
    """Keep the group's scores."""
    share, spec = sharing(f.spec), f.spec
    if spec.group == "max":
        there = tile.apply(Fn.LT, rows.head, add(f.head, share))
        units = tile.reduce("max", tile.apply(Fn.WHERE, there, logits, softmax.HIDDEN), rows.axis)
    else:
        units = tile.reduce("sum", logits, rows.axis)  # rows without a head are zero
    factor = spec.scale / (share if spec.group == "mean" else 1)
    place = (f.batch, tile.program_id(0), tile.apply(Fn.TRUNCDIV, tile.program_id(1), f.schedule.splits), number)
    value = units if factor == 1.0 else mul(units, factor)
    tile.store(found.raw, *place, value=value, bounds={3: tile.param(spec.key_length)})
    return []


def _best(spec: Selector, schedule: Schedule, found: Buffers) -> Program:
    """The best of one split's candidates."""
    with tile.Builder() as builder:
        f = _framed(builder, spec, schedule)
        size = found.best.shape[-1]
        assert isinstance(size, int)
        slots = builder.axis("k", size)
        unit = tile.apply(Fn.TRUNCDIV, tile.program_id(1), schedule.splits)
        kept = _walk(f, slots, _reader(builder, f, found, unit))
        tile.store(found.best, f.batch, f.row, unit, _split(schedule.splits), tile.iota(slots), value=kept)
        read = [found.raw, *([found.sums] if spec.softmax else [])]
        return builder.program(f"{spec.name}_best", [*read, found.best], _params(spec), _grid(spec, schedule.splits))


def _reader(builder: tile.Builder, f: Frame, found: Buffers, unit: Node) -> candidates.Scores:
    """From summaries to their scores, read back; under a softmax their probabilities, reduced over the group."""
    spec, token = f.spec, tile.program_id(0)
    bounds: dict[int, tile.Value] = {3: tile.param(spec.key_length)}
    if not spec.softmax:
        return lambda number: tile.load(found.raw, f.batch, token, unit, number, bounds=bounds, other=softmax.HIDDEN)
    splits = found.sums.shape[-1]
    assert isinstance(splits, int)
    head, split, share = f.head, builder.axis("s", splits), sharing(spec)
    if f.group is not None:
        head = add(f.head, least(tile.iota(f.group), share - 1))
    part = tile.load(found.sums, f.batch, token, head, tile.iota(split))
    if found.sums.name != f"{spec.name}_sums":  # natural ones, minus infinity where nothing was seen
        part = most(mul(part, softmax.LOG2E), softmax.HIDDEN)
    top = tile.reduce("max", part, split)
    total = add(top, tile.apply(Fn.LOG2, tile.reduce("sum", tile.apply(Fn.EXP2, sub(part, top)), split)))

    def probabilities(number: Node) -> Node:
        logits = tile.load(found.raw, f.batch, token, head, number, bounds=bounds, other=softmax.HIDDEN)
        power = tile.apply(Fn.WHERE, candidates._shown(f, number), tile.apply(Fn.EXP2, sub(logits, total)), 0.0)
        if f.group is None:
            return power
        power = tile.apply(Fn.WHERE, tile.apply(Fn.LT, tile.iota(f.group), share), power, 0.0)
        power = tile.reduce("max" if spec.group == "max" else "sum", power, f.group)
        return mul(power, 1.0 / share) if spec.group == "mean" else power

    return probabilities


def _walk(f: Frame, slots: Axis, scores: candidates.Scores) -> Node:
    """The rank keys of a split's best blocks, descending."""
    spec, limit = f.spec, tile.param(f.spec.block_length)
    first, stop = _own(f, Piece(spec.keys, spec.keys, spec.block_length, as_keys(spec.eligible)), limit)

    def visit(at: Node, kept: Node) -> Sequence[Node]:
        block = add(mul(at, f.schedule.block), tile.iota(f.keys))
        found = add(candidates.block_scores(f, scores, block), tile.full(0.0, f.rows, f.keys))
        rank = tile.apply(Fn.RANK, found, block)
        env, open_ = {**f.env, "c": block}, tile.apply(Fn.LT, block, limit)
        if spec.forced is not None:
            rank = tile.apply(Fn.WHERE, emit(spec.forced, env), tile.apply(Fn.XOR, rank, EMPTY_KEY), rank)
        if spec.eligible is not None:
            open_ = both(open_, emit(spec.eligible, env))
        return [tile.top_insert(kept, tile.apply(Fn.WHERE, open_, rank, EMPTY_KEY), slots, f.keys)]

    return tile.loop(first, stop, 1, [tile.full(EMPTY_KEY, f.rows, slots, dtype="int64")], visit, f.schedule.stages)[0]


def _merge(spec: Selector, schedule: Schedule) -> Program:
    """One (token, unit, sequence) per grid point: the best of all splits' best, ordered and weighed."""
    best = buffers(spec, schedule.splits).best
    with tile.Builder() as builder:
        one, size = builder.axis("m", 1), best.shape[-1]
        assert isinstance(size, int)
        slots, spare = builder.axis("k", size), builder.axis("kk", size)
        row = add(tile.program_id(0), tile.iota(one))
        place = (tile.program_id(2), row, tile.program_id(1))

        def visit(split: Node, kept: Node) -> Sequence[Node]:
            return [tile.top_insert(kept, tile.load(best, *place, split, tile.iota(spare)), slots, spare)]

        empty = tile.full(EMPTY_KEY, one, slots, dtype="int64")
        (kept,) = tile.loop(0, schedule.splits, 1, [empty], visit)
        other = builder.axis("k2", size)
        ids, scores = chosen.listed(spec, kept, slots, other)
        units: tuple[str | int, ...] = ("B", "TQ", spec.heads // sharing(spec), spec.slots)
        bounds: dict[int, tile.Value] = {3: spec.slots} if size > spec.slots else {}
        indices = Tensor(spec.indices, "int32", units)
        tile.store(indices, *place, tile.iota(slots), value=ids, bounds=bounds)
        results = [indices]
        if spec.weights is not None and spec.weights_out is not None:
            out = Tensor(spec.weights_out, "float32", units)
            value = chosen.weights(spec.weights, ids, scores, slots, None)
            tile.store(out, *place, tile.iota(slots), value=value, bounds=bounds)
            results.append(out)
        grid = (tile.param("TQ"), tile.const(spec.heads // sharing(spec)), tile.param("B"))
        return builder.program(f"{spec.name}_merge", [best, *results], [("B", "int32"), ("TQ", "int32")], grid)
