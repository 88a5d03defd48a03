"""Dense attention of a few queries: the heads of a group are the rows of a tile, and programs share a row's keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsec.lower import softmax
from sparsec.lower.decode import logits as decode_logits
from sparsec.lower.decode import merge as decode_merge
from sparsec.lower.gathered import chunks
from sparsec.lower.gathered.chunks import Frame
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.ranges import TileRange, nth, outside_interior, total
from sparsec.lower.rows import packed
from sparsec.lower.scalars import add, ceil_div, least, mul
from sparsec.plan.specs import GatheredAttention, Selector, TiledAttention
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Left:
    """Logits that an attention leaves behind for a selector."""

    tensor: Tensor
    selector: Selector


def fits(spec: TiledAttention) -> str | None:
    """Why a spec keeps the forward's kernel; None where it has splits."""
    (piece, *more) = spec.pieces
    if more or not piece.batched:
        return "several memories share its softmax"
    return "its mask is read from a block list" if piece.listed is not None else None


def as_rows(spec: TiledAttention) -> GatheredAttention:
    """The same attention in terms of rows that share keys; its ``TK`` is the length of the one piece."""
    (piece,) = spec.pieces
    return GatheredAttention(
        name=spec.name, q=spec.q, k=piece.k, v=piece.v, indices="", weights=None, out=spec.out, lse=spec.lse,
        scope="kv_head", slots=1, chunk=16, heads=spec.heads, kv_heads=spec.kv_heads, head_dim=spec.head_dim,
        value_dim=spec.value_dim, scale=spec.scale, dtype=spec.dtype, where=piece.where, bias=piece.bias,
        captures=piece.captures, softcap=spec.softcap, sink=spec.sink, out_dtype=spec.out_dtype,
    )  # fmt: skip


def lower(spec: TiledAttention, schedule: Schedule, left: Left | None = None, whole: bool = True) -> Lowered:
    """A program per (query tile, key/value head and split, sequence), and where the ``whole`` is asked for, the merge.

    Logits are ``left`` if asked.
    """
    rows = as_rows(spec)
    found = decode_merge.finished(rows, schedule, Step(_partial(rows, schedule, left), schedule), whole)
    return found if left is None else replace(found, scratch=(*found.scratch, *decode_merge.scratch([left.tensor])))


def _partial(spec: GatheredAttention, schedule: Schedule, left: Left | None) -> Program:
    found = decode_merge.parts(spec, schedule.splits)
    with tile.Builder() as builder:
        number, splits, share = tile.program_id(1), schedule.splits, chunks.sharing(spec)
        split = tile.apply(Fn.TRUNCMOD, number, splits)
        at = chunks.unit(spec, tile.apply(Fn.TRUNCDIV, number, splits))
        tiles = packed(builder.axis("m", schedule.rows), tile.program_id(0), at.head, share)
        f = chunks.frame(builder, replace(spec, sink=None), schedule, tiles, tile.program_id(2), at, 0)
        decode_merge.write(f, found, split, *softmax.finish(_read(f, split, left), None))
        grid = (ceil_div(tile.param("TQ"), tiles.tokens), tile.const(spec.kv_heads * splits), tile.param("B"))
        written = [*found.tensors, *([left.tensor] if left else [])]
        left_out = {spec.indices, spec.out, spec.lse}
        tensors = [*(t for n, t in f.tensors.items() if n not in left_out), *written]
        return builder.program(f"{spec.name}_parts", tensors, [(n, "int32") for n in chunks.PARAMS], grid)


def _read(f: Frame, split: Node, left: Left | None) -> list[Node]:
    """One split's key tiles, of all that the rows may see."""
    ranges = chunks.interior(f) or [_every(f)]
    count = total(ranges)
    per = ceil_div(count, f.schedule.splits)
    first = least(mul(split, per), count)

    def visit(n: Node, *carried: Node) -> Sequence[Node]:
        at = nth(ranges, n)
        key = add(mul(at, f.schedule.block), tile.iota(f.keys))
        scores, scale = chunks.logits(f, key)
        scores = chunks.hide(scores, chunks.visible(f, key), outside_interior(ranges, at))
        if left is not None:
            place = decode_logits.place(left.selector, f.batch, f.rows.token, f.rows.head, key)
            bounds = {**f.rows.bounds, **decode_logits.bounds(left.selector, tile.param("TK"))}
            tile.store(left.tensor, *place, value=mul(scores, scale), bounds=bounds, evict="last")
        return chunks.joint_step(f, carried, key, scores, scale)

    return tile.loop(first, least(add(first, per), count), 1, chunks.start(f), visit, f.schedule.stages)


def _every(f: Frame) -> TileRange:
    """All key tiles, each under its mask."""
    stop = ceil_div(tile.param("TK"), f.schedule.block)
    return TileRange(tile.const(0), stop, stop, stop, inner=False, head=True, tail=True)
