"""The best of a step's candidates: probabilities from logits, lists of portions, and the list of all."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower import softmax
from sparsec.lower.decode import logits as decode_logits
from sparsec.lower.decode import portion
from sparsec.lower.scalars import add, both, emit, least, most, mul, sub
from sparsec.lower.select import candidates, chosen
from sparsec.lower.select.frame import Frame, params, sharing
from sparsec.plan.specs import Selector
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import EMPTY_KEY, Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def masses(spec: Selector, schedule: Schedule, found: portion.Buffers) -> Program:
    """The probabilities of one share's summaries."""
    with tile.Builder() as builder:
        f = portion.framed(builder, spec, schedule)
        first, stop = portion.own(
            f, portion.candidates_of(spec, spec.key_length, visible=True), tile.param(spec.key_length)
        )
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
        grid = portion.grid(spec, schedule.splits)
        return builder.program(f"{spec.name}_masses", [found.raw, found.sums, found.masses], params(spec), grid)


def best(spec: Selector, schedule: Schedule, found: portion.Buffers) -> Program:
    """The best of one share's candidates, by the probabilities of their summaries."""
    with tile.Builder() as builder:
        f = portion.framed(builder, spec, schedule)
        unit = tile.apply(Fn.TRUNCDIV, tile.program_id(1), schedule.splits)

        def masses(number: Node) -> Node:
            bounds: dict[int, tile.Value] = {3: tile.param(spec.key_length)}
            mass = tile.load(found.masses, f.batch, f.row, unit, number, bounds=bounds)
            return tile.apply(Fn.WHERE, candidates.shown(f, number), mass, 0.0)

        keep(builder, f, found, masses)
        grid = portion.grid(spec, schedule.splits)
        touched = [found.masses, *portion.above(spec), found.best]
        return builder.program(f"{spec.name}_best", touched, params(spec), grid)


def keep(builder: tile.Builder, f: Frame, found: portion.Buffers, scores: candidates.Scores) -> None:
    """Leave the list of this share's best."""
    slots = builder.axis("k", found.slots)
    unit, split = (tile.apply(fn, tile.program_id(1), f.schedule.splits) for fn in (Fn.TRUNCDIV, Fn.TRUNCMOD))
    place = (f.batch, f.row, unit, add(mul(split, found.slots), tile.iota(slots)))
    tile.store(found.best, *place, value=_walk(f, slots, scores))


def _probabilities(builder: tile.Builder, f: Frame, found: portion.Buffers) -> candidates.Scores:
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
        logits = tile.load(found.raw, *place, bounds=bounds, other=softmax.HIDDEN, evict="first")
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
    first, stop, number = portion.candidates(f)

    def visit(at: Node, kept: Node) -> Sequence[Node]:
        block = number(at)
        found = add(candidates.block_scores(f, scores, block), tile.full(0.0, f.rows, f.keys))
        rank = tile.apply(Fn.RANK, found, block)
        env, open_ = {**f.env, "c": block}, tile.apply(Fn.LT, block, limit)
        if spec.forced is not None:
            rank = tile.apply(Fn.WHERE, emit(spec.forced, env), tile.apply(Fn.XOR, rank, EMPTY_KEY), rank)
        if spec.eligible is not None:
            open_ = both(open_, emit(spec.eligible, env))
        return [tile.top_insert(kept, tile.apply(Fn.WHERE, open_, rank, EMPTY_KEY), slots, f.keys)]

    return tile.loop(first, stop, 1, [tile.full(EMPTY_KEY, f.rows, slots, dtype="int64")], visit, f.schedule.stages)[0]


def of_all(
    builder: tile.Builder, spec: Selector, found: portion.Buffers, place: tuple[Node, ...], slots: Axis
) -> tuple[Node, Node]:
    """Ids and scores of the best of all lists, along the ``slots``; ``place`` has rows."""
    size = found.lists * found.slots
    every = builder.axis("every", 1 << (size - 1).bit_length())
    within: dict[int, tile.Value] = {3: size} if every.size > size else {}
    new = tile.load(found.best, *place, tile.iota(every), bounds=within, other=EMPTY_KEY)
    kept = tile.top_insert(tile.full(EMPTY_KEY, *tile.union(*place), slots, dtype="int64"), new, slots, every)
    return chosen.listed(spec, kept, slots, builder.axis("k2", found.slots))


def merge(spec: Selector, schedule: Schedule, found: portion.Buffers) -> Program:
    """One (token, unit, sequence) per grid point: the best of all lists, ordered and weighed."""
    with tile.Builder() as builder:
        one, slots = builder.axis("m", 1), builder.axis("k", found.slots)
        row = add(tile.program_id(0), tile.iota(one))
        place = (tile.program_id(2), row, tile.program_id(1))
        ids, scores = of_all(builder, spec, found, place, slots)
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
