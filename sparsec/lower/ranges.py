"""Which key tiles a query tile visits: disjoint ranges from the bounds of a mask, and their mask-free interiors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sparsec.lower.scalars import add, ceil_div, emit_int32, least, most
from sparsec.plan.specs import Piece
from sparsec.scalar.bounds import Bounded, key_ranges
from sparsec.scalar.expr import Expr
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor


@dataclass(frozen=True, slots=True)
class TileRange:
    """Key tiles ``start … stop - 1``, of which ``inner_start … inner_stop - 1`` need no mask.

    Attributes:
        inner: false where no tile can be mask-free, so that one masked loop serves.
        head: false where the interior begins with the range.
        tail: false where the interior ends with the range.
    """

    start: Node
    stop: Node
    inner_start: Node
    inner_stop: Node
    inner: bool
    head: bool
    tail: bool


def tile_ranges(
    piece: Piece, block: int, length: Node, env: Mapping[str, Node], tensors: Mapping[str, Tensor]
) -> list[TileRange]:
    """The ranges of a piece for one query tile; ``env`` gives b, h, i_lo and i_hi (inclusive) and the dims."""
    if piece.where is None:
        return [_whole(piece, block, length)]
    found = key_ranges(piece.where)
    if not isinstance(found, Bounded):
        return [_opaque(block, length)]
    raw = []
    for r in found.ranges:
        low, high = (emit_int32(e, env, tensors) for e in (r.lo, r.hi))
        inner = not r.residual and not _narrow(r.lo, r.hi, block)
        full = [emit_int32(e, env, tensors) for e in (r.full_lo, r.full_hi)] if inner else [length, length]
        same_start = inner and r.lo is r.full_lo and _starts_a_tile(r.lo, block)
        raw.append(([most(low, 0), least(high, length), *full], inner, same_start))
    spans = [r[0] for r in raw]
    if not found.ordered:
        spans = _sorted(spans)
    result, end = [], None
    for span, (_, inner, same_start) in zip(spans, raw, strict=True):
        shared = inner if found.ordered else any(r[1] for r in raw)
        made = _range(span, block, length, end, shared, head=not (same_start and found.ordered))
        end = made.stop if end is None else most(end, made.stop)
        result.append(made)
    return result


def _narrow(lo: object, hi: object, block: int) -> bool:
    """A range from constant to constant that spans two tiles at most: an interior would not pay for its code."""
    head = getattr(lo, "value", None), _constant_limit(hi)
    return isinstance(head[0], int) and head[1] is not None and head[1] - head[0] <= 2 * block


def _starts_a_tile(lo: Expr, block: int) -> bool:
    """Whether a range surely starts where a tile does, so that its first tile may be mask-free."""
    return isinstance(lo.value, int) and lo.head == "const" and lo.value % block == 0


def _constant_limit(expr: object) -> int | None:
    """An upper bound of the form ``minimum(…, constant)`` or a constant."""
    value = getattr(expr, "value", None)
    if isinstance(value, int):
        return value
    if getattr(expr, "head", None) is Fn.MINIMUM:
        limits = [v for v in map(_constant_limit, getattr(expr, "args", ())) if v is not None]
        return min(limits, default=None)
    return None


def _whole(piece: Piece, block: int, length: Node) -> TileRange:
    even = piece.size is not None and piece.size % block == 0
    zero, stop = tile.const(0), ceil_div(length, block)
    inner_stop = stop if even else tile.apply(Fn.TRUNCDIV, length, block)
    wide = piece.size is None or piece.size >= block
    return TileRange(zero, stop, zero, inner_stop, inner=wide, head=False, tail=not even)


def _opaque(block: int, length: Node) -> TileRange:
    stop = ceil_div(length, block)
    return TileRange(tile.const(0), stop, stop, stop, inner=False, head=True, tail=True)


def _sorted(spans: list[list[Node]]) -> list[list[Node]]:
    """The spans by ascending start, by compare-exchange at run time."""
    spans = [list(s) for s in spans]
    for last in range(len(spans) - 1, 0, -1):
        for k in range(last):
            swap = tile.apply(Fn.LT, spans[k + 1][0], spans[k][0])
            pairs = list(zip(spans[k], spans[k + 1], strict=True))
            spans[k] = [tile.apply(Fn.WHERE, swap, b, a) for a, b in pairs]
            spans[k + 1] = [tile.apply(Fn.WHERE, swap, a, b) for a, b in pairs]
    return spans


def _range(span: list[Node], block: int, length: Node, end: Node | None, inner: bool, head: bool) -> TileRange:
    low, high, full_low, full_high = span
    start = tile.apply(Fn.TRUNCDIV, low, block)
    start = start if end is None else most(start, end)
    stop = most(ceil_div(most(high, 0), block), start)
    first = least(most(ceil_div(most(full_low, 0), block), start), stop)
    last = tile.apply(Fn.TRUNCDIV, most(least(full_high, length), 0), block)
    last = least(most(last, first), stop)
    return TileRange(start, stop, first, last, inner, head=head or end is not None, tail=True)


def total(ranges: list[TileRange]) -> Node:
    """The number of tiles in all ranges."""
    count: Node = tile.const(0)
    for r in ranges:
        count = add(count, _size(r))
    return count


def _size(r: TileRange) -> Node:
    return tile.apply(Fn.SUB, r.stop, r.start)


def nth(ranges: list[TileRange], n: Node) -> Node:
    """The key tile that the n-th visit of all ranges goes to."""
    found = add(ranges[-1].start, n)
    passed: Node = tile.const(0)
    offsets = []
    for r in ranges[:-1]:
        offsets.append((passed, r))
        passed = add(passed, _size(r))
    found = add(ranges[-1].start, tile.apply(Fn.SUB, n, passed))
    for before, r in reversed(offsets):
        here = add(r.start, tile.apply(Fn.SUB, n, before))
        found = tile.apply(Fn.WHERE, tile.apply(Fn.LT, n, add(before, _size(r))), here, found)
    return found


def outside_interior(ranges: list[TileRange], key_tile: Node) -> Node | None:
    """The scalar condition that a tile needs its mask; None where every tile does."""
    condition: Node | None = None
    for r in ranges:
        if r.inner:
            before, after = tile.apply(Fn.LT, key_tile, r.inner_start), tile.apply(Fn.LE, r.inner_stop, key_tile)
            needs = tile.apply(Fn.OR, before, after)
            condition = needs if condition is None else tile.apply(Fn.AND, condition, needs)
    return condition


def walk(
    r: TileRange, state: list[Node], visit: Callable[[bool], Callable[..., Sequence[Node]]], stages: int
) -> list[Node]:
    """A loop each for the masked head, the mask-free interior and the masked tail of a range: ``visit(masked)``."""
    if not r.inner:
        return tile.loop(r.start, r.stop, 1, state, visit(True), stages)
    if r.head:
        state = tile.loop(r.start, r.inner_start, 1, state, visit(True), stages)
    state = tile.loop(r.inner_start, r.inner_stop, 1, state, visit(False), stages)
    return tile.loop(r.inner_stop, r.stop, 1, state, visit(True), stages) if r.tail else state
