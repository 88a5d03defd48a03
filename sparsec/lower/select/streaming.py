"""The streaming selector: score, reduce over the group, pool and keep a running top-k; nothing of size T x T/C exists.

One program holds a tile of tokens of one selection (a head, or the heads of a group) and walks the candidate blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sparsec.lower import softmax
from sparsec.lower.pieces import spans
from sparsec.lower.ranges import tile_ranges
from sparsec.lower.scalars import add, both, ceil_div, emit, least, mul, sub
from sparsec.lower.select import chosen
from sparsec.lower.select.candidates import Frame, as_keys, block_scores, sharing, summary_scores
from sparsec.plan.specs import Piece, Selector
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import EMPTY_KEY, Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule, ScheduleError


def lower(spec: Selector, schedule: Schedule) -> Program:
    """q ``[B,TQ,H,D]``, keys ``[B,N,HKV,D]`` -> indices int32 ``[B,TQ,HS,slots]`` and, if asked for, weights fp32."""
    check(spec, schedule)
    spec = _without_constants(spec)
    with tile.Builder() as builder:
        f = _frame(builder, spec, schedule)
        slots, spare = (builder.axis(name, 1 << (spec.slots - 1).bit_length()) for name in ("k", "kk"))
        best, everything = _best(f, slots)
        ids, scores = chosen.listed(spec, best, slots, spare)
        place = (f.batch, f.row, tile.program_id(1), tile.iota(slots))
        bounds: dict[int, tile.Value] = {1: tile.param("TQ")}
        if slots.size > spec.slots:
            bounds[3] = spec.slots
        tile.store(f.tensors[spec.indices], *place, value=ids, bounds=bounds)
        if spec.weights is not None:
            assert spec.weights_out is not None
            value = chosen.weights(spec.weights, ids, scores, slots, everything)
            tile.store(f.tensors[spec.weights_out], *place, value=value, bounds=bounds)
        if spec.hard_out is not None:
            tile.store(f.tensors[spec.hard_out], *place, value=chosen.hard(ids), bounds=bounds)
        units = spec.heads // sharing(spec)
        grid = (ceil_div(tile.param("TQ"), schedule.rows), tile.const(units), tile.param("B"))
        return builder.program(spec.name, list(f.tensors.values()), _params(spec), grid)


def check(spec: Selector, schedule: Schedule) -> None:
    """Refuse a schedule that cannot carry this spec out."""
    rows, block = schedule.rows, schedule.block
    if schedule.split_dims and (rows < 16 or block < 16 or rows & (rows - 1) or block & (block - 1)):
        raise ScheduleError(f"{rows} rows x {block} keys do not fill tensor-core tiles: powers of two from 16 on do")


def _without_constants(spec: Selector) -> Selector:
    """The spec without predicates that say nothing: eligible always, forced never."""
    eligible, forced = spec.eligible, spec.forced
    return replace(
        spec,
        eligible=None if eligible is not None and eligible.value is True else eligible,
        forced=None if forced is not None and forced.value is False else forced,
    )


def _params(spec: Selector) -> list[tuple[str, str]]:
    names = dict.fromkeys(["B", "TQ", "TK", "q_offset", spec.key_length, spec.block_length])
    return [(name, "int32") for name in names]


def _tensors(spec: Selector) -> dict[str, Tensor]:
    """Buffers in launch order."""
    units: tuple[str | int, ...] = ("B", "TQ", spec.heads // sharing(spec), spec.slots)
    lead = ["B"] if spec.batched else []
    found = [
        Tensor(spec.q, spec.dtype, ("B", "TQ", spec.heads, spec.dim)),
        Tensor(spec.keys, spec.key_dtype or spec.dtype, (*lead, spec.key_length, spec.kv_heads, spec.dim)),
        Tensor(spec.indices, "int32", units),
    ]
    if spec.weights is not None and spec.weights_out is not None:
        found.append(Tensor(spec.weights_out, "float32", units))
    if spec.hard_out is not None:
        found.append(Tensor(spec.hard_out, "float32", units))
    return {t.name: t for t in found}


def _frame(builder: tile.Builder, spec: Selector, schedule: Schedule) -> Frame:
    share = sharing(spec)
    rows, keys = builder.axis("m", schedule.rows), builder.axis("n", schedule.block)
    dims = spans(builder, "d", spec.dim, schedule)
    group = builder.axis("g", 1 << (share - 1).bit_length()) if share > 1 else None
    first, length, offset = mul(tile.program_id(0), schedule.rows), tile.param("TQ"), tile.param("q_offset")
    row, head = add(first, tile.iota(rows)), mul(tile.program_id(1), share)
    last = sub(least(add(first, schedule.rows), length), 1)
    env = {name: tile.param(name) for name, _ in _params(spec)}
    env |= {"b": tile.program_id(2), "h": head, "i": add(row, offset)}
    env |= {"i_lo": add(first, offset), "i_hi": add(last, offset)}
    key_head = tile.apply(Fn.TRUNCDIV, head, spec.heads // spec.kv_heads)
    return Frame(spec, schedule, rows, keys, dims, group, tile.program_id(2), head, key_head, row, env, _tensors(spec))


def _best(f: Frame, slots: Axis) -> tuple[Node, Node | None]:
    """The rank keys of the best blocks, descending; the log-sum-exp of all eligible scores where weights need it."""
    spec, scores = f.spec, summary_scores(f)
    limit = tile.param(spec.block_length)
    piece = Piece(spec.keys, spec.keys, spec.block_length, as_keys(spec.eligible))
    ranges = tile_ranges(piece, f.schedule.block, limit, f.env, f.tensors)

    def visit(at: Node, kept: Node, *sums: Node) -> Sequence[Node]:
        block = add(mul(at, f.schedule.block), tile.iota(f.keys))
        found = block_scores(f, scores, block)
        rank = tile.apply(Fn.RANK, found, block)
        env, open_ = {**f.env, "c": block}, tile.apply(Fn.LT, block, limit)
        if spec.forced is not None:
            forced = tile.apply(Fn.XOR, rank, EMPTY_KEY)
            rank = tile.apply(Fn.WHERE, emit(spec.forced, env), forced, rank)
        if spec.eligible is not None:
            open_ = both(open_, emit(spec.eligible, env))
        best = tile.top_insert(kept, tile.apply(Fn.WHERE, open_, rank, EMPTY_KEY), slots, f.keys)
        return [
            best,
            *(chosen.summed(sums, tile.apply(Fn.WHERE, open_, found, softmax.HIDDEN), f.keys) if sums else ()),
        ]

    inits = [tile.full(EMPTY_KEY, f.rows, slots, dtype="int64")]
    if spec.weights == "softmax_all":
        inits += [tile.full(softmax.HIDDEN, f.rows), tile.full(0.0, f.rows)]
    best, *sums = tile.loop(ranges[0].start, ranges[-1].stop, 1, inits, visit, f.schedule.stages)
    return best, add(sums[0], tile.apply(Fn.LOG, sums[1])) if sums else None


def default(spec: Selector, target: str) -> Schedule:
    """Tiles of 64 tokens x 16 candidates or more; fewer tokens on a CPU and for fp32, more warps for long lists.

    sm_90 keeps such lists in the registers of 4 warps, and was measured: sorting candidates is most of the work, and
    128 tokens were best for single heads with short lists (MoBA at T16384, 0.080 ms).
    """
    if not target.startswith("triton"):
        return Schedule(order="two_pass", rows=16, block=16, lanes=("m", "n", "d"), split_dims=False)
    order = "two_pass" if spec.softmax else "one_pass"
    rows = 32 if spec.dtype == "float32" else 64
    if rows == 64 and target == "triton:sm_90" and spec.group is None and not spec.softmax and spec.slots <= 4:
        rows = 128 if spec.dim <= 128 else 64
    warps = 8 if spec.slots > 32 and target.startswith("triton:sm") and target != "triton:sm_90" else 4
    return Schedule(order, rows, _block(spec, target), warps=warps, stages=2 if spec.softmax else 3)


def _block(spec: Selector, target: str) -> int:
    """Every head's queries are read again for each tile of candidates: wide tiles, where registers hold them.

    Summaries that are kept in fp32 take three products each, and the registers of their parts.
    """
    whole = spec.softmax and spec.dtype != "float32" and spec.key_dtype in (None, spec.dtype)
    if not whole or target != "triton:sm_90" or spec.slots > 16 or spec.dim > 128:
        return 16
    return 64 if spec.pool is None else 32


def space(spec: Selector, target: str) -> dict[str, tuple[object, ...]]:
    """Tile sizes, warps and stages."""
    if not target.startswith("triton"):
        return {"rows": (8, 16, 32), "block": (8, 16, 32)}
    blocks = tuple(sorted({16, 32, _block(spec, target)}))
    return {"rows": (32, 64, 128), "block": blocks, "warps": (2, 4, 8), "stages": (1, 2, 3)}
