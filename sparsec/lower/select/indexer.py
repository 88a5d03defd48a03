"""The selector of single tokens by a lightning indexer: a program per token scores all keys with its heads as rows.

Every key is read once per token and serves all index heads in one product; the best are kept in registers.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower import parents
from sparsec.lower.scalars import add, both, emit, mul
from sparsec.lower.select import children, chosen, index_rows
from sparsec.lower.select.frame import keep, lists_of
from sparsec.lower.select.index_rows import Index
from sparsec.lower.select.walk import walk
from sparsec.lower.softmax import HIDDEN
from sparsec.plan.specs import Selector
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import EMPTY_KEY, Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: Selector, schedule: Schedule) -> Program:
    """q ``[B,TQ,HI,D]``, weights ``[B,TQ,HI]``, keys ``[B,N,1,D]`` -> indices int32 ``[B,TQ,1,slots]``, and weights."""
    index_rows.check(schedule)
    with tile.Builder() as builder:
        token, batch = mul(tile.program_id(0), spec.query_block), tile.program_id(1)
        keys = builder.axis("n", schedule.block)  # keys are the rows of products: their scores lie apart, for the sort
        own = index_rows.index(builder, spec, schedule, batch, token, tile.const(0))
        slots, spare = (builder.axis(name, 1 << (spec.slots - 1).bit_length()) for name in ("k", "kk"))
        best, everything = _best(own, slots, keys)
        ids, scores = chosen.listed(spec, best, slots, spare)
        listed: tuple[str | int, ...] = ("B", "TQ", 1, spec.slots)
        above = [] if spec.parents is None else parents.tensors(spec.parents, "TQ")
        touched = [*index_rows.tensors(spec), *above, Tensor(spec.indices, "int32", listed)]
        place = (batch, token, tile.const(0), tile.iota(slots))
        bounds: dict[int, tile.Value] = {3: spec.slots} if slots.size > spec.slots else {}
        keep(spec, touched[-1], place, ids, dict(bounds))
        if spec.weights is not None and spec.weights_out is not None:
            touched.append(Tensor(spec.weights_out, "float32", listed))
            value = chosen.weights(spec.weights, ids, scores, slots, everything)
            tile.store(touched[-1], *place, value=value, bounds=dict(bounds))
        if spec.hard_out is not None:
            touched.append(Tensor(spec.hard_out, "float32", listed))
            tile.store(touched[-1], *place, value=chosen.hard(ids), bounds=dict(bounds))
        params = dict.fromkeys(["B", "TQ", "TK", "q_offset", spec.key_length, spec.block_length])
        grid = (lists_of(spec), tile.param("B"))
        return builder.program(spec.name, touched, [(name, "int32") for name in params], grid)


def _best(own: Index, slots: Axis, keys: Axis) -> tuple[Node, Node | None]:
    """The rank keys of the best, descending; the log-sum-exp of all eligible scores where weights need it."""
    spec, limit = own.spec, tile.param(own.spec.block_length)
    position = add(own.token, tile.param("q_offset"))
    env = {name: tile.param(name) for name in ("B", "TQ", "TK", "q_offset", spec.key_length, spec.block_length)}
    env |= {"b": own.batch, "h": tile.const(0), "i": position, "i_lo": position, "i_hi": position}
    walked = walk(spec, own.schedule, keys, (own.batch, own.token, tile.const(0)), env, {})

    def visit(at: Node, kept: Node, *sums: Node) -> Sequence[Node]:
        key = walked.number(at)
        found = own.scores(key)
        here, open_ = {**env, "c": key}, tile.apply(Fn.LT, key, limit)
        rank = tile.apply(Fn.RANK, found, key)
        if spec.forced is not None:
            rank = tile.apply(Fn.WHERE, emit(spec.forced, here), tile.apply(Fn.XOR, rank, EMPTY_KEY), rank)
        if spec.eligible is not None:
            open_ = both(open_, emit(spec.eligible, here))
        best = tile.top_insert(kept, tile.apply(Fn.WHERE, walked.within(key, open_), rank, EMPTY_KEY), slots, keys)
        more = chosen.summed(sums, tile.apply(Fn.WHERE, open_, found, HIDDEN), keys) if sums else ()
        return [best, *more]

    inits = [tile.full(EMPTY_KEY, slots, dtype="int64")]
    if spec.weights == "softmax_all":
        inits += [tile.const(HIDDEN), tile.const(0.0)]
    best, *sums = tile.loop(walked.start, walked.stop, 1, inits, visit, own.schedule.stages)
    return best, add(sums[0], tile.apply(Fn.LOG, sums[1])) if sums else None


def default(spec: Selector, target: str) -> Schedule:
    """Wide tiles of keys: long lists cost a merge per tile; of a choice within lists the children alone."""
    order = children.ORDER if children.fits(spec) else "one_pass"
    if not target.startswith("triton"):
        return Schedule(order=order, block=64, lanes=("n", "d"), split_dims=False)
    block = 64 if spec.dtype == "float32" else 256 if spec.slots > 256 else 128
    return Schedule(order=order, block=block, warps=8 if block > 64 else 4, stages=2)


def space(spec: Selector, target: str) -> dict[str, tuple[object, ...]]:
    """Keys of a tile, warps and stages; whether all keys are scored where the children of a list would do."""
    orders: dict[str, tuple[object, ...]] = {"order": (children.ORDER, "one_pass")} if children.fits(spec) else {}
    if not target.startswith("triton"):
        return {"block": (32, 64, 128), **orders}
    return {"block": (32, 64, 128, 256), "warps": (4, 8), "stages": (1, 2, 3), **orders}
