"""The streaming selector: score, reduce over the group, pool and keep a running top-k; nothing of size T x T/C exists.

One program holds a tile of tokens of one selection (a head, or the heads of a group) and walks the candidate blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sparsec.lower import descriptors, softmax
from sparsec.lower.scalars import add, both, ceil_div, emit
from sparsec.lower.select import children, chosen, insert, log_sums, rounds
from sparsec.lower.select.candidates import block_scores, summary_scores
from sparsec.lower.select.frame import Frame, biased, frame, keep, lists_of, params, sharing, without_constants
from sparsec.lower.select.insert import Axes
from sparsec.lower.select.shares import fits, shares
from sparsec.lower.select.walk import of_frame
from sparsec.plan.specs import Selector
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import EMPTY_KEY, Axis, Node, Program
from sparsec.tile.schedule import Schedule, ScheduleError


def lower(spec: Selector, schedule: Schedule) -> Program:
    """q ``[B,TQ,H,D]``, keys ``[B,N,HKV,D]`` -> indices int32 ``[B,TQ,HS,slots]`` and, if asked for, weights fp32."""
    check(spec, schedule)
    spec = without_constants(spec)
    with tile.Builder() as builder:
        f = frame(builder, spec, schedule)
        if schedule.order == "rounds":
            _store_rounds(f)
        else:
            _store_sorted(f, *(builder.axis(name, 1 << (spec.slots - 1).bit_length()) for name in ("k", "kk")))
        units = spec.heads // sharing(spec)
        grid = (ceil_div(lists_of(spec), schedule.rows), tile.const(units), tile.param("B"))
        read = [log_sums.tensor(spec)] if schedule.order == "apart" else []
        return builder.program(spec.name, [*f.tensors.values(), *read], params(spec), grid)


def _store_sorted(f: Frame, slots: Axis, spare: Axis) -> None:
    """A row's list from its rank keys, and what else is asked for of it."""
    spec = f.spec
    best, everything = _best(f, Axes(f.rows, slots, f.keys, spare))
    ids, scores = chosen.listed(spec, best, slots, spare)
    place = (f.batch, f.row, tile.program_id(1), tile.iota(slots))
    bounds: dict[int, tile.Value] = {1: tile.param("TQ")}
    if slots.size > spec.slots:
        bounds[3] = spec.slots
    keep(spec, f.tensors[spec.indices], place, ids, bounds)
    if spec.weights is not None:
        assert spec.weights_out is not None
        value = chosen.weights(spec.weights, ids, scores, slots, everything)
        tile.store(f.tensors[spec.weights_out], *place, value=value, bounds=bounds)
    if spec.hard_out is not None:
        tile.store(f.tensors[spec.hard_out], *place, value=chosen.hard(ids), bounds=bounds)
    if spec.scores_out is not None:
        value = tile.apply(Fn.WHERE, tile.apply(Fn.LE, 0, ids), scores, 0.0)
        tile.store(f.tensors[spec.scores_out], *place, value=value, bounds=bounds)


def _store_rounds(f: Frame) -> None:
    """A row's list slot by slot, -1 where nothing is left."""
    spec, scores, walk = f.spec, summary_scores(f), of_frame(f)

    def visit(at: Node, *state: Node) -> Sequence[Node]:
        block = walk.number(at)
        found = biased(f, block_scores(f, scores, block), block)
        forced, open_ = _predicates(f, block)
        return rounds.insert(state, rounds.ranks(found, forced, walk.within(block, open_)), block, f.keys)

    state = tile.loop(walk.start, walk.stop, 1, rounds.start(spec, f.rows), visit, f.schedule.stages)
    names = [*state[1::2], *[tile.full(-1, f.rows, dtype="int32")] * (spec.slots - len(state) // 2)]
    for slot, name in enumerate(names):
        place = (f.batch, f.row, tile.program_id(1), tile.const(slot))
        keep(spec, f.tensors[spec.indices], place, name, {1: tile.param("TQ")})


def _predicates(f: Frame, block: Node) -> tuple[Node | None, Node]:
    """Which candidates are forced, and which may be chosen at all."""
    spec, env = f.spec, {**f.env, "c": block}
    open_ = tile.apply(Fn.LT, block, tile.param(spec.block_length))
    forced = None if spec.forced is None else emit(spec.forced, env)
    if spec.eligible is not None:
        open_ = both(open_, emit(spec.eligible, env))
    return forced, open_


def check(spec: Selector, schedule: Schedule) -> None:
    """Refuse a schedule that cannot carry this spec out."""
    rows, block, gathered = schedule.rows, schedule.block, children.wanted(spec, schedule)
    if schedule.split_dims and gathered and (rows & (rows - 1) or block & (block - 1)):
        raise ScheduleError(f"{rows} rows x {block} keys: tiles are powers of two")
    if schedule.split_dims and not gathered and (rows < 16 or block < 16 or rows & (rows - 1) or block & (block - 1)):
        raise ScheduleError(f"{rows} rows x {block} keys do not fill tensor-core tiles: powers of two from 16 on do")
    if schedule.order == "rounds" and not rounds.fits(spec):
        raise ScheduleError(f"the order 'rounds' is for lists of {rounds.LONGEST} ids at most, by rank; use 'one_pass'")
    if schedule.order == "apart" and not fits(spec):
        raise ScheduleError("the order 'apart' is for shares of a softmax, by sums of few summaries; use 'two_pass'")


def _best(f: Frame, axes: Axes) -> tuple[Node, Node | None]:
    """The rank keys of the best blocks, descending; the log-sum-exp of all eligible scores where weights need it."""
    spec, apart = f.spec, f.schedule.order == "apart"
    scores = None if apart else summary_scores(f)
    walk = of_frame(f)

    def visit(at: Node, *state: Node) -> Sequence[Node]:
        block = walk.number(at)
        found = biased(f, shares(f, at) if scores is None else block_scores(f, scores, block), block)
        forced, open_ = _predicates(f, block)
        near = walk.within(block, open_)
        if apart:
            kept = insert.insert(state[:2], insert.ranks(found, forced, near), block, axes)
        else:
            kept = [tile.top_insert(state[0], _rank_keys(found, block, forced, near), axes.slots, f.keys)]
        sums = state[len(kept) :]
        if not sums:
            return kept
        return [*kept, *chosen.summed(sums, tile.apply(Fn.WHERE, open_, found, softmax.HIDDEN), f.keys)]

    inits = insert.start(axes) if apart else [tile.full(EMPTY_KEY, f.rows, axes.slots, dtype="int64")]
    sums = [tile.full(softmax.HIDDEN, f.rows), tile.full(0.0, f.rows)] if spec.weights == "softmax_all" else []
    state = tile.loop(walk.start, walk.stop, 1, [*inits, *sums], visit, f.schedule.stages)
    kept, sums = state[: len(inits)], state[len(inits) :]
    best = insert.descending(kept, axes) if apart else kept[0]
    return best, add(sums[0], tile.apply(Fn.LOG, sums[1])) if sums else None


def _rank_keys(scores: Node, block: Node, forced: Node | None, open_: Node) -> Node:
    """The rank keys of a tile's candidates."""
    rank = tile.apply(Fn.RANK, scores, block)
    if forced is not None:
        rank = tile.apply(Fn.WHERE, forced, tile.apply(Fn.XOR, rank, EMPTY_KEY), rank)
    return tile.apply(Fn.WHERE, open_, rank, EMPTY_KEY)


FLAT = Schedule(order="two_pass", rows=16, block=16, lanes=("m", "n", "d"), split_dims=False)
"""All candidates on a CPU."""


def default(spec: Selector, target: str) -> Schedule:
    """Tiles of 64 tokens x 16 candidates or more; fewer tokens on a CPU and for fp32, more warps for long lists.

    sm_90 keeps such lists in the registers of 4 warps, and was measured: sorting candidates is most of the work, and
    128 tokens were best for single heads with short lists (MoBA at T16384, 0.080 ms). Shares of a softmax are taken in
    two kernels there: 12.6 ms instead of 23.9 for NSA at 128K, 55 instead of 123 with windows of 32 every 16
    (52 with 64 candidates and two stages, which spill). Lists of four at most are chosen by rounds, where that was
    measured: 0.083 ms for 0.111 (MoBA, three blocks of 512).
    """
    if not target.startswith("triton"):
        gathered = replace(FLAT, order=children.ORDER, block=8, lanes=("d", "n", "m"))
        return gathered if children.fits(spec) else FLAT
    if target == "triton:sm_90" and fits(spec) and _whole(spec):
        boxes, pooled = descriptors.pay(target, spec.dtype, spec.dim), spec.pool is not None
        return Schedule("apart", 64, 32 if pooled else 128, warps=4, stages=3, descriptors=boxes)
    if target == "triton:sm_90" and _by_rounds(spec):
        return Schedule("rounds", 64, 16, warps=4, stages=1, descriptors=True)
    order = "two_pass" if spec.softmax else "one_pass"
    rows = 32 if spec.dtype == "float32" else 64
    if rows == 64 and target == "triton:sm_90" and spec.group is None and not spec.softmax and spec.slots <= 4:
        rows = 128 if spec.dim <= 128 else 64
    warps = 8 if spec.slots > 32 and target.startswith("triton:sm") and target != "triton:sm_90" else 4
    block = 32 if spec.softmax and target == "triton:sm_90" and _whole(spec) else 16
    return Schedule(order, rows, block, warps=warps, stages=2 if spec.softmax else 3)


def _by_rounds(spec: Selector) -> bool:
    """Whether rounds were seen to be quicker than sorting: lists of single heads of 64 or 128, from all candidates."""
    single = spec.group is None and spec.parents is None and spec.dtype != "float32"
    return single and spec.dim in (64, 128) and rounds.fits(without_constants(spec))


def _whole(spec: Selector) -> bool:
    """Whether registers hold wide tiles of candidates, for which every head's queries are read less often.

    Summaries that are kept in fp32 take three products each, and the registers of their parts.
    """
    return spec.dtype != "float32" and spec.key_dtype in (None, spec.dtype) and spec.slots <= 16 and spec.dim <= 128


def space(spec: Selector, target: str) -> dict[str, tuple[object, ...]]:
    """Loop order, tile sizes, warps and stages."""
    if not target.startswith("triton"):
        sizes: dict[str, tuple[object, ...]] = {"rows": (8, 16, 32), "block": (8, 16, 32)}
        both_ways = {"order": (children.ORDER, FLAT.order), "lanes": (("d", "n", "m"), FLAT.lanes)}
        return sizes | both_ways if children.fits(spec) else sizes
    found: dict[str, tuple[object, ...]] = {"rows": (32, 64, 128), "warps": (2, 4, 8), "stages": (1, 2, 3)}
    if children.fits(spec):
        all_of_them = space(replace(spec, parents=None), target)
        orders = all_of_them.get("order", (default(spec, target).order,))
        few = {"rows": (4, 8, 16, *found["rows"]), "block": (8, *all_of_them["block"])}
        return all_of_them | few | {"order": (*orders, children.ORDER)}
    if not fits(spec):
        if not rounds.fits(without_constants(spec)):
            return found | {"block": (16, 32)}
        boxes = (False, True) if descriptors.pay(target, spec.dtype, spec.dim) else (False,)
        return found | {"order": ("one_pass", "rounds"), "block": (16, 32), "descriptors": boxes}
    wide = (64, 128) if _whole(spec) else ()
    return found | {"order": ("two_pass", "apart"), "block": (16, 32, *wide), "descriptors": (False, True)}
