"""Tiled attention, query-outer: every query tile walks the key tiles that its masks can see, under one online
softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsec.lower import softmax
from sparsec.lower.pieces import Span, dot_over, spans
from sparsec.lower.ranges import TileRange, nth, outside_interior, tile_ranges, total, walk
from sparsec.lower.scalars import add, captured, ceil_div, least, mul, sub
from sparsec.lower.tiled import visits
from sparsec.lower.tiled.score import modified, pair_env, seen
from sparsec.lower.tiled.visits import Visits
from sparsec.plan.specs import Piece, TiledAttention
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule, ScheduleError


@dataclass(frozen=True, slots=True)
class Frame:
    """What every step of one query tile shares."""

    spec: TiledAttention
    schedule: Schedule
    rows: Axis
    keys: Axis
    dims: list[Span]
    values: list[Span]
    batch: Node
    head: Node
    key_head: Node
    first: Node
    queries: list[Node]
    env: dict[str, Node]
    tensors: dict[str, Tensor]
    value_base: Node | int


def lower(spec: TiledAttention, schedule: Schedule) -> Program:
    """The program of one (query tile, head, batch) per grid point."""
    check(spec, schedule)
    with tile.Builder() as builder:
        frame = _frame(builder, spec, schedule)
        sink = None
        if spec.sink is not None:
            zero = spec.sink == "zero"
            sink = tile.const(0.0) if zero else _fp32(tile.load(frame.tensors[spec.sink], frame.head))
        state = softmax.start((frame.rows,), frame.values)
        for piece in spec.pieces:
            state = _read_piece(frame, piece, state)
        _write(frame, *softmax.finish(state, sink))
        blocks = 1 if not schedule.value_block else spec.value_dim // schedule.value_block
        grid = (ceil_div(tile.param("TQ"), schedule.rows), tile.const(spec.heads * blocks), tile.param("B"))
        return builder.program(spec.name, list(frame.tensors.values()), _params(spec), grid)


def check(spec: TiledAttention, schedule: Schedule) -> None:
    """Refuse a schedule that cannot carry this spec out."""
    if schedule.value_block and spec.value_dim % schedule.value_block:
        raise ScheduleError(f"value_block {schedule.value_block} does not divide the value dim {spec.value_dim}")
    for piece in spec.pieces:
        if piece.listed is not None and (piece.listed.block_q % schedule.rows or piece.listed.block_k % schedule.block):
            raise ScheduleError(
                f"tiles of {schedule.rows} x {schedule.block} do not divide the block list's "
                f"{piece.listed.block_q} x {piece.listed.block_k}"
            )


def _params(spec: TiledAttention) -> list[tuple[str, str]]:
    lengths = dict.fromkeys(["B", "TQ", "TK", "q_offset", *(p.length for p in spec.pieces)])
    return [(name, "int32") for name in lengths]


def _tensors(spec: TiledAttention) -> dict[str, Tensor]:
    """Buffers in launch order."""
    found = {spec.q: Tensor(spec.q, spec.dtype, ("B", "TQ", spec.heads, spec.head_dim))}
    for p in spec.pieces:
        lead: tuple[str | int, ...] = ("B", p.length) if p.batched else (p.length,)
        found[p.k] = Tensor(p.k, spec.dtype, (*lead, spec.kv_heads, spec.head_dim))
        found[p.v] = Tensor(p.v, spec.dtype, (*lead, spec.kv_heads, spec.value_dim))
        found |= captured(p.captures)
        if p.listed is not None:
            found[p.listed.ids] = Tensor(p.listed.ids, "int32", ("LB", "LH", "LQ", "LK"))
            found |= {n: Tensor(n, "int32", ("LB", "LH", "LQ")) for n in p.listed.buffers[1:]}
    if spec.sink not in (None, "zero"):
        assert spec.sink is not None
        found.setdefault(spec.sink, Tensor(spec.sink, "float32", (spec.heads,)))
    found[spec.out] = Tensor(spec.out, spec.out_dtype or spec.dtype, ("B", "TQ", spec.heads, spec.value_dim))
    if spec.lse is not None:
        found[spec.lse] = Tensor(spec.lse, "float32", ("B", "TQ", spec.heads))
    return found


def _frame(builder: tile.Builder, spec: TiledAttention, schedule: Schedule) -> Frame:
    rows, keys = builder.axis("m", schedule.rows), builder.axis("n", schedule.block)
    dims = spans(builder, "d", spec.head_dim, schedule)
    values = spans(builder, "e", schedule.value_block or spec.value_dim, schedule)
    tensors, length = _tensors(spec), tile.param("TQ")
    blocks = 1 if not schedule.value_block else spec.value_dim // schedule.value_block
    pid = tile.program_id(1)
    head = tile.apply(Fn.TRUNCDIV, pid, blocks)
    base = mul(tile.apply(Fn.TRUNCMOD, pid, blocks), schedule.value_block) if blocks > 1 else 0
    batch, first = tile.program_id(2), mul(_turn(schedule, length), schedule.rows)
    position = add(add(first, tile.iota(rows)), tile.param("q_offset"))
    queries = [
        tile.load(tensors[spec.q], batch, add(first, tile.iota(rows)), head, d.index(), bounds={1: length})
        for d in dims
    ]
    last = sub(least(add(first, schedule.rows), length), 1)
    env = {
        "b": batch,
        "h": head,
        "i": position,
        "i_lo": add(first, tile.param("q_offset")),
        "i_hi": add(last, tile.param("q_offset")),
        **{name: tile.param(name) for name, _ in _params(spec)},
    }
    key_head = tile.apply(Fn.TRUNCDIV, head, spec.heads // spec.kv_heads)
    return Frame(spec, schedule, rows, keys, dims, values, batch, head, key_head, first, queries, env, tensors, base)


def _turn(schedule: Schedule, length: Node) -> Node:
    """The query tile of a program: the last ones, which see the most keys, first where a processor has room for one."""
    number = tile.program_id(0)
    return sub(sub(ceil_div(length, schedule.rows), 1), number) if schedule.has_roles else number


def _read_piece(frame: Frame, piece: Piece, state: list[Node]) -> list[Node]:
    """All key tiles of one piece: from its block list, or from the ranges of its mask."""
    if piece.listed is not None:
        return _read_list(frame, piece, state)
    block, length = frame.schedule.block, tile.param(piece.length)
    ranges = tile_ranges(piece, block, length, frame.env, frame.tensors)
    stages = frame.schedule.stages
    if frame.schedule.phases == "branch":

        def visit(n: Node, *carried: Node) -> Sequence[Node]:
            at = nth(ranges, n)
            return _step(frame, piece, at, outside_interior(ranges, at), carried)

        return tile.loop(0, total(ranges), 1, state, visit, stages)
    for r in ranges:
        state = _read_phases(frame, piece, r, state)
    return state


def _read_phases(frame: Frame, piece: Piece, r: TileRange, state: list[Node]) -> list[Node]:
    """A loop each for the masked head, the mask-free interior and the masked tail of a range."""

    def visit(masked: bool) -> Callable[..., Sequence[Node]]:
        return lambda at, *carried: _step(frame, piece, at, None if masked else False, carried)

    return walk(r, state, visit, frame.schedule.stages)


def _read_list(frame: Frame, piece: Piece, state: list[Node]) -> list[Node]:
    """The key tiles that a block list names for this query tile."""
    listed, schedule = piece.listed, frame.schedule
    assert listed is not None
    number = tile.apply(Fn.TRUNCDIV, frame.first, listed.block_q)
    row = visits.row_of(listed, frame.batch, frame.head, frame.spec.heads, number)

    def ranges() -> list[TileRange]:
        return tile_ranges(piece, schedule.block, tile.param(piece.length), frame.env, frame.tensors)

    for found in visits.of_list(listed, frame.tensors, row, listed.block_k // schedule.block, ranges):

        def visit(n: Node, *carried: Node, found: Visits = found) -> Sequence[Node]:
            at = found.at(n)
            return _step(frame, piece, at, found.masked(at), carried)

        state = tile.loop(0, found.count, 1, state, visit, schedule.stages)
    return state


def _step(frame: Frame, piece: Piece, at: Node, masked: Node | bool | None, state: Sequence[Node]) -> Sequence[Node]:
    """One key tile. ``masked``: False never, None always, else under that scalar condition."""
    schedule = frame.schedule
    start, length = mul(at, schedule.block), tile.param(piece.length)
    key = add(start, tile.iota(frame.keys))

    def read(name: str, span: Span, base: Node | int = 0) -> Node:
        place = (key, frame.key_head, span.index(base))
        lead = (frame.batch, *place) if piece.batched else place
        bounds: dict[int, tile.Value] = {} if masked is False else {int(piece.batched): length}
        return tile.load(frame.tensors[name], *lead, bounds=bounds, other=0.0 if bounds else None)

    scores = dot_over(frame.dims, frame.queries, lambda d: read(piece.k, d), schedule.precision)
    pair = pair_env(piece, frame.env, key)
    scores, scale = modified(frame.spec, piece, scores, pair, frame.tensors)
    if masked is not False:
        visible = seen(piece, pair, frame.tensors, tile.apply(Fn.LT, key, length))
        assert visible is not None
        if masked is None:
            scores = tile.apply(Fn.WHERE, visible, scores, softmax.HIDDEN)
        else:
            assert isinstance(masked, Node)
            scores = tile.mask_if(masked, visible, scores, softmax.HIDDEN)
    load_value = lambda e: read(piece.v, e, frame.value_base)  # noqa: E731
    return softmax.step(state, scores, scale, frame.keys, load_value, frame.values, schedule.precision)


def _fp32(x: Node) -> Node:
    return tile.cast(x, "float32")


def _write(frame: Frame, outs: list[Node], lse: Node) -> None:
    """Round and store the output, and the log-sum-exp from the first value block."""
    spec, row = frame.spec, add(frame.first, tile.iota(frame.rows))
    for span, out in zip(frame.values, outs, strict=True):
        place, target = (frame.batch, row, frame.head, span.index(frame.value_base)), frame.tensors[spec.out]
        tile.store(target, *place, value=tile.cast(out, target.dtype), bounds={1: tile.param("TQ")})
    if spec.lse is not None:
        tile.store(frame.tensors[spec.lse], frame.batch, row, frame.head, value=lse, bounds={1: tile.param("TQ")})
