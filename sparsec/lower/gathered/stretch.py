"""All visible keys of a stretch of the memory under one softmax: masked edges and a mask-free middle, a loop each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sparsec.lower.gathered import chunks, flat, partials
from sparsec.lower.gathered.chunks import Frame
from sparsec.lower.ranges import TileRange, outside_interior, tile_ranges, walk
from sparsec.lower.scalars import add, both, ceil_div, least, most, mul
from sparsec.plan.specs import Piece
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node


@dataclass(frozen=True, slots=True)
class Stretch:
    """Keys ``low … high - 1``.

    Attributes:
        among: from keys to which rows may see them, beside the spec's own predicate; None for all rows.
        clear: a scalar condition under which tiles inside the stretch need no ``among``; None where they never do.
        aligned: whether both ends are ends of key tiles.
    """

    low: Node
    high: Node
    among: Callable[[Node], Node] | None = None
    clear: Node | None = None
    aligned: bool = True


def read(f: Frame, stretch: Stretch, state: Sequence[Node], member: Node | None = None) -> list[Node]:
    """The state of a softmax after the keys of a stretch; rows that are no ``member`` keep theirs."""
    carried = list(state)
    for r in _ranges(f):
        carried = _phases(f, stretch, _clip(r, stretch, f.schedule.block), carried, member)
    return carried


def read_once(f: Frame, stretch: Stretch, state: Sequence[Node], some: bool = False) -> list[Node]:
    """As ``read``, in one loop for each range, whose tiles are masked under a condition.

    With ``some`` a loop has a turn at least, masked where there is nothing to be read.
    """
    carried = list(state)
    for r in (_clip(r, stretch, f.schedule.block) for r in _ranges(f)):

        def visit(at: Node, *carried: Node, r: TileRange = r) -> Sequence[Node]:
            return _step(f, stretch, at, outside_interior([r], at), carried, None)

        stop = most(r.stop, add(r.start, 1)) if some else r.stop
        carried = tile.loop(r.start, stop, 1, carried, visit, f.schedule.stages)
    return carried


def read_flat(f: Frame, stretch: Stretch) -> tuple[list[Node], Node | None]:
    """As ``read`` from the start: without a maximum where no tile needs a mask and every row is safe, else anew.

    With it comes the rows' largest finite magnitude, None where nothing is read without a maximum.
    """
    clear = _is_clear(f, stretch) if flat.fits(f.spec) else None
    if clear is None:
        return read(f, stretch, chunks.start(f)), None
    first, end = (tile.apply(Fn.TRUNCDIV, x, f.schedule.block) for x in (stretch.low, stretch.high))

    def anew(n: Node, *_: Node) -> Sequence[Node]:  # n is 0: what depends on it stays under the condition
        masked = lambda at, *carried: _step(f, stretch, at, None, carried, None)  # noqa: E731
        found = tile.loop(add(first, n), end, 1, chunks.start(f), masked, 1)
        return [*found, partials.magnitude(f, found[:-2])]

    state = _flat(f, first, tile.apply(Fn.WHERE, clear, end, first))
    *found, largest = flat.checked(f, state, partials.magnitude(f, state[:-1], finite=False), anew)
    return found, largest


def read_unchecked(f: Frame, stretch: Stretch) -> tuple[list[Node], Node | None, Node | None]:
    """As ``read_flat``, but nothing is read anew: last comes 1 for rows that should be, else 0; None where none is."""
    clear = _is_clear(f, stretch) if flat.fits(f.spec) else None
    if clear is None:
        return read_once(f, stretch, chunks.start(f)), None, None
    first, end = (tile.apply(Fn.TRUNCDIV, x, f.schedule.block) for x in (stretch.low, stretch.high))
    known = min(2, f.spec.chunk // f.schedule.block)  # so many turns a loop is seen to have
    *accs, total = _flat(f, first, most(end, add(first, known)))
    largest = partials.magnitude(f, accs, finite=False)
    anew = tile.apply(Fn.WHERE, clear, flat.unsafe(total, largest), 1)
    return [*accs, tile.full(0.0, f.rows.axis), total], largest, anew


def _flat(f: Frame, first: Node, stop: Node) -> list[Node]:
    """Accumulators and sums of some tiles, none of which needs a mask, without a maximum."""

    def visit(at: Node, *carried: Node) -> Sequence[Node]:
        key = add(mul(at, f.schedule.block), tile.iota(f.keys))
        return flat.step(f, carried, key, *chunks.logits(f, key))

    return tile.loop(first, stop, 1, flat.start(f), visit, f.schedule.stages)


def _is_clear(f: Frame, stretch: Stretch) -> Node | None:
    """The scalar truth that no tile of an aligned stretch needs a mask; None where that is never known."""
    ranges = _ranges(f)
    if len(ranges) > 1 or not ranges[0].inner or not stretch.aligned or stretch.among is not None:
        return None
    inner, block = ranges[0], f.schedule.block
    begins = tile.apply(Fn.LE, mul(inner.inner_start, block), stretch.low)
    return both(begins, tile.apply(Fn.LE, stretch.high, mul(inner.inner_stop, block)))


def _ranges(f: Frame) -> list[TileRange]:
    """The key tiles that some row may see; all, and masked, where rows of several heads see by head."""
    where, block, length = f.spec.where, f.schedule.block, tile.param("TK")
    if where is not None and chunks.reads(where, "h") and f.rows.head.axes:
        stop = ceil_div(length, block)
        return [TileRange(tile.const(0), stop, stop, stop, inner=False, head=True, tail=True)]
    piece = Piece(f.spec.k, f.spec.v, "TK", where, captures=f.spec.captures)
    return tile_ranges(piece, block, length, f.env, f.tensors)


def _clip(r: TileRange, stretch: Stretch, block: int) -> TileRange:
    """The part of a range inside a stretch; empty where they do not meet."""
    first, end = tile.apply(Fn.TRUNCDIV, stretch.low, block), ceil_div(stretch.high, block)
    start = most(r.start, first)
    stop = most(least(r.stop, end), start)
    inner_first = first if stretch.aligned else ceil_div(stretch.low, block)
    inner_end = end if stretch.aligned else tile.apply(Fn.TRUNCDIV, stretch.high, block)
    inner_start = least(most(r.inner_start, most(inner_first, start)), stop)
    inner_stop = most(least(least(r.inner_stop, inner_end), stop), inner_start)
    if stretch.clear is not None:
        inner_stop = tile.apply(Fn.WHERE, stretch.clear, inner_stop, inner_start)
    return replace(
        r, start=start, stop=stop, inner_start=inner_start, inner_stop=inner_stop,
        head=r.head or not stretch.aligned, tail=r.tail or not stretch.aligned or stretch.clear is not None,
    )  # fmt: skip


def _phases(f: Frame, stretch: Stretch, r: TileRange, state: list[Node], member: Node | None) -> list[Node]:
    """A loop each for the masked head, the mask-free middle and the masked tail of a range."""

    def visit(masked: bool) -> Callable[..., Sequence[Node]]:
        return lambda at, *carried: _step(f, stretch, at, None if masked else False, carried, member)

    return walk(r, state, visit, f.schedule.stages)


def _step(
    f: Frame,
    stretch: Stretch,
    at: Node,
    masked: Node | Literal[False] | None,
    state: Sequence[Node],
    member: Node | None,
) -> Sequence[Node]:
    """One key tile. ``masked``: False never, None always, else under that scalar condition."""
    key = add(mul(at, f.schedule.block), tile.iota(f.keys))
    scores, scale = chunks.logits(f, key)
    if masked is not False:
        among = None if stretch.among is None else stretch.among(key)
        scores = chunks.hide(scores, both(chunks.visible(f, key), among), masked)
    return chunks.joint_step(f, state, key, scores, scale, member)
