"""One step of attention over chosen chunks: a tile of keys of a chunk, seen by the rows that chose it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsec.lower import softmax
from sparsec.lower.pieces import Span, dot_over, spans
from sparsec.lower.ranges import TileRange, outside_interior, tile_ranges
from sparsec.lower.rows import Rows
from sparsec.lower.scalars import add, both, captured, emit, emit_scores, least, most, mul, sub
from sparsec.plan.specs import GatheredAttention, Piece
from sparsec.scalar.expr import Expr
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor
from sparsec.tile.schedule import Schedule

PARAMS = ("B", "TQ", "TK", "q_offset")


@dataclass(frozen=True, slots=True)
class Frame:
    """What every step of one row tile shares.

    Attributes:
        listed: the number of the list of chunks in ``[B, TQ, HS, K]``.
        value_base: the first column of the output that this program computes.
    """

    spec: GatheredAttention
    schedule: Schedule
    rows: Rows
    keys: Axis
    dims: list[Span]
    values: list[Span]
    batch: Node
    listed: Node
    key_head: Node
    queries: list[Node]
    sink: Node | None
    env: dict[str, Node]
    tensors: dict[str, Tensor]
    value_base: Node | int


@dataclass(frozen=True, slots=True)
class Unit:
    """Which list, which key/value head and which first query head a program works for."""

    listed: Node
    key_head: Node
    head: Node


def sharing(spec: GatheredAttention) -> int:
    """The number of query heads that read the same chunks of the same key/value head."""
    return 1 if spec.scope == "head" else spec.heads // spec.kv_heads


def lists(spec: GatheredAttention) -> int:
    """The number of lists per token, HS."""
    return {"head": spec.heads, "kv_head": spec.kv_heads, "token": 1}[spec.scope]


def unit(spec: GatheredAttention, number: Node) -> Unit:
    """The unit of this number, of ``heads / sharing``."""
    key_head = tile.apply(Fn.TRUNCDIV, number, spec.heads // spec.kv_heads) if spec.scope == "head" else number
    listed = tile.const(0) if spec.scope == "token" else number
    return Unit(listed, key_head, mul(number, sharing(spec)))


def tensors(spec: GatheredAttention) -> dict[str, Tensor]:
    """Buffers in launch order."""
    listed: tuple[str | int, ...] = ("B", "TQ", lists(spec))
    found = {
        spec.q: Tensor(spec.q, spec.dtype, ("B", "TQ", spec.heads, spec.head_dim)),
        spec.k: Tensor(spec.k, spec.dtype, ("B", "TK", spec.kv_heads, spec.head_dim)),
        spec.v: Tensor(spec.v, spec.dtype, ("B", "TK", spec.kv_heads, spec.value_dim)),
        spec.indices: Tensor(spec.indices, "int32", (*listed, spec.slots)),
    }
    if spec.counts is not None:
        found[spec.counts] = Tensor(spec.counts, "int32", listed)
    if spec.weights is not None:
        found[spec.weights] = Tensor(spec.weights, "float32", (*listed, spec.slots))
    found |= captured(spec.captures)
    if spec.sink not in (None, "zero"):
        assert spec.sink is not None
        found.setdefault(spec.sink, Tensor(spec.sink, "float32", (spec.heads,)))
    found[spec.out] = Tensor(spec.out, spec.out_dtype or spec.dtype, ("B", "TQ", spec.heads, spec.value_dim))
    if spec.lse is not None:
        found[spec.lse] = Tensor(spec.lse, "float32", ("B", "TQ", spec.heads))
    return found


def frame(
    builder: tile.Builder,
    spec: GatheredAttention,
    schedule: Schedule,
    rows: Rows,
    batch: Node,
    at: Unit,
    value_base: Node | int,
) -> Frame:
    """The axes, the query rows and the variables of predicates."""
    keys, dims = builder.axis("n", schedule.block), spans(builder, "d", spec.head_dim, schedule)
    values = spans(builder, "e", schedule.value_block or spec.value_dim, schedule)
    buffers = tensors(spec)
    queries = [tile.load(buffers[spec.q], *rows.place(batch, d.index()), bounds=rows.bounds) for d in dims]
    env = {name: tile.param(name) for name in PARAMS}
    row, head = _readable(spec, rows)
    env |= {"b": batch, "h": head, "i": add(row, tile.param("q_offset"))}
    env |= {"i_lo": rows.first_position, "i_hi": rows.last_position}
    sink = None
    if spec.sink is not None:
        limits = {0: rows.bounds[2]} if 2 in rows.bounds else None
        sink = tile.const(0.0) if spec.sink == "zero" else tile.load(buffers[spec.sink], rows.head, bounds=limits)
    return Frame(
        spec, schedule, rows, keys, dims, values, batch, at.listed, at.key_head, queries, sink, env, buffers, value_base
    )


def _readable(spec: GatheredAttention, rows: Rows) -> tuple[Node, Node]:
    """Rows and heads for predicates; where those read captured tensors, rows that are never stored repeat the last."""
    if not spec.captures:
        return rows.token, rows.head
    return least(rows.token, sub(tile.param("TQ"), 1)), least(rows.head, spec.heads - 1)


def _variables(f: Frame, key: Node) -> dict[str, Node]:
    """What predicates and biases may name; keys past the last repeat it where captured tensors are read."""
    return {**f.env, "j": least(key, sub(tile.param("TK"), 1)) if f.spec.captures else key}


def reads(expr: Expr, name: str) -> bool:
    """Whether an expression has a variable of this name."""
    return expr.value == name if expr.head == "var" else any(reads(a, name) for a in expr.args)


def interior(f: Frame) -> list[TileRange] | None:
    """The key tiles that the rows see, with their mask-free interiors; None where they differ by the row's head."""
    where = f.spec.where
    if where is not None and reads(where, "h") and f.rows.head.axes:
        return None
    piece = Piece(f.spec.k, f.spec.v, "TK", where, captures=f.spec.captures)
    return tile_ranges(piece, f.schedule.block, tile.param("TK"), f.env, f.tensors)


def boundary(f: Frame, number: Node) -> Node | None:
    """The scalar condition that key tile ``number`` needs a mask; None where every tile does."""
    ranges = interior(f)
    return None if ranges is None else outside_interior(ranges, number)


def visible(f: Frame, key: Node) -> Node:
    """Which of the keys the rows may see: below TK and under the predicate."""
    inside = tile.apply(Fn.LT, key, tile.param("TK"))
    if f.spec.where is None:
        return inside
    return both(emit(f.spec.where, _variables(f, key), f.tensors), inside)


def logits(f: Frame, key: Node) -> tuple[Node, float]:
    """Scores ``[m, n]`` after soft cap and bias, and the factor that makes them base-two logits."""
    scores = dot_over(f.dims, f.queries, lambda d: read(f, f.spec.k, key, d.index()), f.schedule.precision)
    spec = f.spec
    if spec.softcap is None and spec.bias is None and spec.scale > 0:
        return scores, spec.scale * softmax.LOG2E
    scores = mul(scores, spec.scale)
    if spec.softcap is not None:
        scores = mul(tile.apply(Fn.TANH, mul(scores, 1.0 / spec.softcap)), spec.softcap)
    if spec.bias is not None:
        scores = emit_scores(spec.bias, {**_variables(f, key), "score": scores}, f.tensors, scores)
    return scores, softmax.LOG2E


def hide(scores: Node, mask: Node, condition: Node | None) -> Node:
    """Scores with what the mask does not show hidden, under a scalar condition if there is one."""
    if condition is None:
        return tile.apply(Fn.WHERE, mask, scores, softmax.HIDDEN)
    return tile.mask_if(condition, mask, scores, softmax.HIDDEN)


def parts(f: Frame) -> int:
    """The number of key tiles of a chunk; the last may reach into the next chunk and is then masked."""
    return -(-f.spec.chunk // f.schedule.block)


def part_scores(
    f: Frame, chunk: Node, part: Node, used: Node | None = None, whole: bool = False
) -> tuple[Node, Node, float]:
    """Keys, masked scores and their scale of one part of a chunk; nothing shows where the scalar ``used`` is false.

    A ``whole`` chunk is known to need no mask.
    """
    size, block = f.spec.chunk, f.schedule.block
    start = add(mul(chunk, size), mul(part, block))
    key = add(start, tile.iota(f.keys))
    scores, scale = logits(f, key)
    if whole:
        return key, scores, scale
    mask, condition = visible(f, key), None
    if size % block:
        mask = both(mask, tile.apply(Fn.LT, key, mul(add(chunk, 1), size)))
    else:
        condition = boundary(f, add(mul(chunk, size // block), part))
    if used is not None:
        mask = both(mask, used)
        condition = None if condition is None else tile.apply(Fn.OR, condition, tile.apply(Fn.NOT, used))
    return key, hide(scores, mask, condition), scale


def read(f: Frame, name: str, key: Node, column: Node) -> Node:
    """Rows ``key`` of k or v; those from TK on are zero."""
    return tile.load(f.tensors[name], f.batch, key, f.key_head, column, bounds={1: tile.param("TK")})


def start(f: Frame) -> list[Node]:
    """The state of a softmax before any key."""
    return softmax.start((f.rows.axis,), f.values)


def joint_step(
    f: Frame, state: Sequence[Node], key: Node, scores: Node, scale: float, member: Node | None = None
) -> list[Node]:
    """One key tile under the common softmax, for the rows that are ``member``s."""
    load_value = value_reader(f, key)
    return softmax.step(state, scores, scale, f.keys, load_value, f.values, f.schedule.precision, member)


def value_reader(f: Frame, key: Node) -> Callable[[Span], Node]:
    """How a step reads the columns of v that it needs."""
    return lambda e: read(f, f.spec.v, key, e.index(f.value_base))


def chunk_step(f: Frame, accs: Sequence[Node], key: Node, scores: Node, scale: float, weight: Node) -> list[Node]:
    """A chunk of one key tile under a softmax of its own without a sink, added with its weight."""
    top = most(mul(tile.reduce("max", scores, f.keys), scale), softmax.HIDDEN)
    p = tile.apply(Fn.EXP2, sub(mul(scores, scale), top))
    total = tile.reduce("sum", p, f.keys)
    empty = tile.apply(Fn.LE, top, softmax.NOTHING)
    p = mul(p, tile.apply(Fn.WHERE, empty, 0.0, tile.apply(Fn.DIV, weight, total)))
    result, load_value = [], value_reader(f, key)
    for acc, span in zip(accs, f.values, strict=True):
        v = load_value(span)
        result.append(tile.dot(tile.cast(p, v.dtype), v, f.keys, acc, f.schedule.precision))
    return result


def weigh_chunk(
    f: Frame,
    accs: Sequence[Node],
    weight: Node,
    score: Callable[[Node], tuple[Node, Node, float]],
) -> list[Node]:
    """A whole chunk under its own softmax, added with its weight; ``score`` gives keys, scores and scale of a part."""
    if parts(f) == 1 and f.sink is None:
        return chunk_step(f, accs, *score(tile.const(0)), weight)

    def visit(part: Node, *carried: Node) -> Sequence[Node]:
        return joint_step(f, carried, *score(part))

    if parts(f) == 1:
        state = joint_step(f, start(f), *score(tile.const(0)))
    else:
        state = tile.loop(0, parts(f), 1, start(f), visit, f.schedule.stages)
    outs, _ = softmax.finish(state, f.sink)
    return [add(acc, mul(out, weight)) for acc, out in zip(accs, outs, strict=True)]


def write(f: Frame, outs: Sequence[Node], lse: Node | None) -> None:
    """Round and store the output, and the log-sum-exp if it is asked for."""
    for span, out in zip(f.values, outs, strict=True):
        place, target = f.rows.place(f.batch, span.index(f.value_base)), f.tensors[f.spec.out]
        tile.store(target, *place, value=tile.cast(out, target.dtype), bounds=f.rows.bounds)
    if f.spec.lse is not None:
        assert lse is not None, "a softmax per chunk defines no log-sum-exp"
        tile.store(f.tensors[f.spec.lse], *f.rows.place(f.batch), value=lse, bounds=f.rows.bounds)
