"""The selector for a few queries: scores once, in programs that share the candidates, then the best of each share.

The heads of a group are the rows of a tile, so a key is read once for all of them. Scores that rank as they are stay
inside their program, which leaves the best of its share. Where they become probabilities, logits of a step are written,
fp32, a number per head and summary, with every share's log-sum-exp; then the probabilities of groups, and those rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsec.lower import softmax
from sparsec.lower.decode import logits as decode_logits
from sparsec.lower.decode import merge as decode_merge
from sparsec.lower.gathered.gpu import row_tile
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.ranges import tile_ranges
from sparsec.lower.rows import Rows, one_token
from sparsec.lower.scalars import add, both, ceil_div, emit, least, most, mul, sub
from sparsec.lower.select import candidates, chosen
from sparsec.lower.select.candidates import as_keys
from sparsec.lower.select.frame import Frame, frame, params, sharing, without_constants
from sparsec.plan.specs import Piece, Selector
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import EMPTY_KEY, Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule

RANKED = {True: 128, False: 16}
"""Candidates that join a list of the best at a time: many where a program's threads rank them at once, on a GPU."""
LISTS = 8
"""Programs at least that rank a unit's probabilities: each has few."""
WEIGHED = 16
"""Programs at least that turn a unit's logits into probabilities."""


@dataclass(frozen=True, slots=True)
class Buffers:
    """What one program leaves for the next.

    Attributes:
        raw: base-two logits of every head, see ``decode_logits``; nothing where scores rank as they are.
        sums: base-two log-sum-exps ``[B, TQ, H, splits]``, likewise.
        masses: probabilities of summaries, reduced over the group, ``[B, TQ, units, N]``, likewise.
        best: rank keys ``[B, TQ, units, lists * slots]``, each list descending.
        lists: programs that leave a list.
    """

    raw: Tensor
    sums: Tensor
    masses: Tensor
    best: Tensor
    lists: int

    @property
    def slots(self) -> int:
        """The length of a list, a power of two."""
        size = self.best.shape[-1]
        assert isinstance(size, int)
        return size // self.lists


def buffers(spec: Selector, splits: int) -> Buffers:
    """The buffers of one spec."""
    units, slots = spec.heads // sharing(spec), 1 << (spec.slots - 1).bit_length()
    lists = max(splits, LISTS) if spec.softmax else splits
    return Buffers(
        decode_logits.logits(spec, spec.key_length),
        Tensor(f"{spec.name}_sums", "float32", ("B", "TQ", spec.heads, splits)),
        Tensor(f"{spec.name}_masses", "float32", ("B", "TQ", units, spec.key_length)),
        Tensor(f"{spec.name}_best", "int64", ("B", "TQ", units, lists * slots)),
        lists,
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
    spec = without_constants(spec)
    found = buffers(spec, schedule.splits)
    if sums is not None:
        found = replace(found, sums=sums)
    one = replace(schedule, rows=1, warps=1 if schedule.warps > 1 else schedule.warps, stages=1)
    merged = Step(_merge(spec, one, found), one)
    if not spec.softmax:
        return Lowered((Step(_scores(spec, schedule), schedule), merged), decode_merge.scratch([found.best]))
    ranked = replace(schedule, splits=found.lists, rows=1, block=RANKED[schedule.split_dims], stages=1)
    first = [Step(_scores(spec, schedule), schedule)] if sums is None else []
    weighed = replace(ranked, splits=max(found.lists, WEIGHED))
    rest = (Step(_masses(spec, weighed, found), weighed), Step(_best(spec, ranked, found), ranked))
    own = [found.raw, found.sums, found.masses, found.best]
    return Lowered((*first, *rest, merged), decode_merge.scratch(own))


def _keys(spec: Selector, length: str, visible: bool = False) -> Piece:
    """What a share is cut from: the candidates that are eligible, or the summaries that are visible."""
    return Piece(spec.keys, spec.keys, length, as_keys(spec.visible if visible else spec.eligible))


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
    f = frame(builder, spec, replace(schedule, rows=1))
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
        walk = _logits if spec.softmax else _ranked
        written = walk(builder, f, found, rows, queries)
        read = [f.tensors[spec.q], f.tensors[spec.keys]]
        grid = _grid(spec, schedule.splits)
        return builder.program(f"{spec.name}_scores", [*read, *written], params(spec), grid)


def _logits(builder: tile.Builder, f: Frame, found: Buffers, rows: Rows, queries: list[Node]) -> list[Tensor]:
    """Every head's base-two logits, and their log-sum-exps over this share."""
    spec, f = f.spec, replace(f, env={**f.env, "i": add(tile.program_id(0), tile.param("q_offset"))})
    first, stop = _own(f, _keys(spec, spec.key_length, visible=True), tile.param(spec.key_length))

    def visit(at: Node, top: Node, total: Node) -> Sequence[Node]:
        number = add(mul(at, f.schedule.block), tile.iota(f.keys))
        logits = mul(candidates.products(f, queries, number), spec.scale * softmax.LOG2E)
        logits = tile.apply(Fn.WHERE, candidates.shown(f, number), logits, softmax.HIDDEN)
        where = decode_logits.place(spec, f.batch, rows.token, rows.head, number)
        bounds = decode_logits.bounds(spec, tile.param(spec.key_length), rows.bounds.get(2))
        tile.store(found.raw, *where, value=logits, bounds=bounds)
        high = most(top, tile.reduce("max", logits, f.keys))
        more = tile.reduce("sum", tile.apply(Fn.EXP2, sub(logits, high)), f.keys)
        return [high, add(mul(total, tile.apply(Fn.EXP2, sub(top, high))), more)]

    inits = [tile.full(softmax.HIDDEN, rows.axis), tile.full(0.0, rows.axis)]
    value = _log(*tile.loop(first, stop, 1, inits, visit, f.schedule.stages))
    tile.store(found.sums, *rows.place(f.batch, _split(f.schedule.splits)), value=value, bounds=rows.bounds)
    return [found.raw, found.sums]


def _ranked(builder: tile.Builder, f: Frame, found: Buffers, rows: Rows, queries: list[Node]) -> list[Tensor]:
    """The best of this share's candidates, by the scores of the group."""
    length = tile.param(f.spec.key_length)

    def scores(number: Node) -> Node:
        units = _grouped(f, rows, candidates.products(f, queries, number))
        return tile.apply(Fn.WHERE, tile.apply(Fn.LT, number, length), units, softmax.HIDDEN)

    _keep(builder, f, found, scores)
    return [found.best]


def _grouped(f: Frame, rows: Rows, logits: Node) -> Node:
    """The heads' scores as one, scaled."""
    spec, share = f.spec, sharing(f.spec)
    if spec.group == "max":
        there = tile.apply(Fn.LT, rows.head, add(f.head, share))
        units = tile.reduce("max", tile.apply(Fn.WHERE, there, logits, softmax.HIDDEN), rows.axis)
    else:
        units = tile.reduce("sum", logits, rows.axis)  # rows without a head are zero
    factor = spec.scale / (share if spec.group == "mean" else 1)
    return units if factor == 1.0 else mul(units, factor)


def _log(top: Node, total: Node) -> Node:
    """The log-sum-exp of a share; hidden where it saw nothing."""
    empty = tile.apply(Fn.LE, top, softmax.NOTHING)
    found = add(top, tile.apply(Fn.LOG2, tile.apply(Fn.WHERE, empty, 1.0, total)))
    return tile.apply(Fn.WHERE, empty, softmax.HIDDEN, found)


def _masses(spec: Selector, schedule: Schedule, found: Buffers) -> Program:
    """The probabilities of one share's summaries."""
    with tile.Builder() as builder:
        f = _framed(builder, spec, schedule)
        first, stop = _own(f, _keys(spec, spec.key_length, visible=True), tile.param(spec.key_length))
        unit, probabilities = (
            tile.apply(Fn.TRUNCDIV, tile.program_id(1), schedule.splits),
            _probabilities(builder, f, found),
        )

        def visit(at: Node) -> Sequence[Node]:
            number = add(mul(at, schedule.block), tile.iota(f.keys))
            mass = add(probabilities(number), tile.full(0.0, f.rows, f.keys))
            bounds: dict[int, tile.Value] = {3: tile.param(spec.key_length)}
            tile.store(found.masses, f.batch, f.row, unit, number, value=mass, bounds=bounds)
            return []

        tile.loop(first, stop, 1, [], visit, schedule.stages)
        grid = _grid(spec, schedule.splits)
        return builder.program(f"{spec.name}_masses", [found.raw, found.sums, found.masses], params(spec), grid)


def _best(spec: Selector, schedule: Schedule, found: Buffers) -> Program:
    """The best of one share's candidates, by the probabilities of their summaries."""
    with tile.Builder() as builder:
        f = _framed(builder, spec, schedule)
        unit = tile.apply(Fn.TRUNCDIV, tile.program_id(1), schedule.splits)

        def masses(number: Node) -> Node:
            bounds: dict[int, tile.Value] = {3: tile.param(spec.key_length)}
            mass = tile.load(found.masses, f.batch, f.row, unit, number, bounds=bounds)
            return tile.apply(Fn.WHERE, candidates.shown(f, number), mass, 0.0)

        _keep(builder, f, found, masses)
        grid = _grid(spec, schedule.splits)
        return builder.program(f"{spec.name}_best", [found.masses, found.best], params(spec), grid)


def _keep(builder: tile.Builder, f: Frame, found: Buffers, scores: candidates.Scores) -> None:
    """Leave the list of this share's best."""
    slots = builder.axis("k", found.slots)
    unit, split = (tile.apply(fn, tile.program_id(1), f.schedule.splits) for fn in (Fn.TRUNCDIV, Fn.TRUNCMOD))
    place = (f.batch, f.row, unit, add(mul(split, found.slots), tile.iota(slots)))
    tile.store(found.best, *place, value=_walk(f, slots, scores))


def _probabilities(builder: tile.Builder, f: Frame, found: Buffers) -> candidates.Scores:
    """From summaries to their probabilities, reduced over the group."""
    spec, token = f.spec, tile.program_id(0)
    splits = found.sums.shape[-1]
    assert isinstance(splits, int)
    head, split, share = f.head, builder.axis("s", splits), sharing(spec)
    spare = f.group is not None and f.group.size > share
    if f.group is not None:
        lane = tile.iota(f.group)
        head = add(f.head, least(lane, share - 1) if spare else lane)
    part = tile.load(found.sums, f.batch, token, head, tile.iota(split))
    if found.sums.name != f"{spec.name}_sums":  # natural ones, minus infinity where nothing was seen
        part = most(mul(part, softmax.LOG2E), softmax.HIDDEN)
    top = tile.reduce("max", part, split)
    total = add(top, tile.apply(Fn.LOG2, tile.reduce("sum", tile.apply(Fn.EXP2, sub(part, top)), split)))
    bounds = decode_logits.bounds(spec, tile.param(spec.key_length))

    def probabilities(number: Node) -> Node:
        place = decode_logits.place(spec, f.batch, token, head, number)
        logits = tile.load(found.raw, *place, bounds=bounds, other=softmax.HIDDEN)
        power = tile.apply(Fn.WHERE, candidates.shown(f, number), tile.apply(Fn.EXP2, sub(logits, total)), 0.0)
        if f.group is None:
            return power
        if spare:
            power = tile.apply(Fn.WHERE, tile.apply(Fn.LT, tile.iota(f.group), share), power, 0.0)
        power = tile.reduce("max" if spec.group == "max" else "sum", power, f.group)
        return mul(power, 1.0 / share) if spec.group == "mean" else power

    return probabilities


def _walk(f: Frame, slots: Axis, scores: candidates.Scores) -> Node:
    """The rank keys of a split's best blocks, descending."""
    spec, limit = f.spec, tile.param(f.spec.block_length)
    first, stop = _own(f, _keys(spec, spec.block_length), limit)

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


def _merge(spec: Selector, schedule: Schedule, found: Buffers) -> Program:
    """One (token, unit, sequence) per grid point: the best of all lists, ordered and weighed."""
    with tile.Builder() as builder:
        one, slots = builder.axis("m", 1), builder.axis("k", found.slots)
        every = builder.axis("every", 1 << (found.lists * found.slots - 1).bit_length())
        row = add(tile.program_id(0), tile.iota(one))
        place = (tile.program_id(2), row, tile.program_id(1))
        size, keys = found.lists * found.slots, (*place, tile.iota(every))
        within: dict[int, tile.Value] = {3: size} if every.size > size else {}
        new = tile.load(found.best, *keys, bounds=within, other=EMPTY_KEY)
        kept = tile.top_insert(tile.full(EMPTY_KEY, one, slots, dtype="int64"), new, slots, every)
        ids, scores = chosen.listed(spec, kept, slots, builder.axis("k2", found.slots))
        units: tuple[str | int, ...] = ("B", "TQ", spec.heads // sharing(spec), spec.slots)
        bounds: dict[int, tile.Value] = {3: spec.slots} if found.slots > spec.slots else {}
        indices = Tensor(spec.indices, "int32", units)
        tile.store(indices, *place, tile.iota(slots), value=ids, bounds=bounds)
        results = [indices]
        if spec.weights is not None and spec.weights_out is not None:
            out = Tensor(spec.weights_out, "float32", units)
            value = chosen.weights(spec.weights, ids, scores, slots, None)
            tile.store(out, *place, tile.iota(slots), value=value, bounds=bounds)
            results.append(out)
        if spec.hard_out is not None:
            results.append(Tensor(spec.hard_out, "float32", units))
            tile.store(results[-1], *place, tile.iota(slots), value=chosen.hard(ids), bounds=bounds)
        grid = (tile.param("TQ"), tile.const(spec.heads // sharing(spec)), tile.param("B"))
        return builder.program(f"{spec.name}_merge", [found.best, *results], [("B", "int32"), ("TQ", "int32")], grid)
