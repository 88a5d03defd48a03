"""A portion of a unit's candidates: whose they are, where it begins and ends, and what its programs leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from sparsec.lower import parents
from sparsec.lower.decode import logits as decode_logits
from sparsec.lower.ranges import tile_ranges
from sparsec.lower.scalars import add, ceil_div, least, most, mul, sub
from sparsec.lower.select import children
from sparsec.lower.select.candidates import as_keys
from sparsec.lower.select.frame import Frame, frame, sharing
from sparsec.plan.specs import Piece, Selector
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor
from sparsec.tile.schedule import Schedule

LISTS = 8
"""Programs at least that rank a unit's probabilities: each has few."""


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


def candidates_of(spec: Selector, length: str, visible: bool = False) -> Piece:
    """What a share is cut from: the candidates that are eligible, or the summaries that are visible."""
    return Piece(spec.keys, spec.keys, length, as_keys(spec.visible if visible else spec.eligible))


def own(f: Frame, piece: Piece, limit: Node) -> tuple[Node, Node]:
    """The key tiles of this program's split."""
    ranges = tile_ranges(piece, f.schedule.block, limit, f.env, f.tensors)
    return _cut(f, ranges[0].start, most(ranges[-1].stop, ranges[0].start))


def candidates(f: Frame) -> tuple[Node, Node, Callable[[Node], Node]]:
    """The tiles of this program's split of what is chosen from, and from a tile to its candidates."""
    above, block = f.spec.parents, f.schedule.block
    if above is not None:
        first, stop = _cut(f, tile.const(0), tile.const(children.tiles(above, block)))
        return first, stop, lambda at: children.numbers(f, above, at)
    first, stop = own(f, candidates_of(f.spec, f.spec.block_length), tile.param(f.spec.block_length))
    return first, stop, lambda at: add(mul(at, block), tile.iota(f.keys))


def above(spec: Selector) -> list[Tensor]:
    """The lists that a spec chooses within, where there are any."""
    return [] if spec.parents is None else parents.tensors(spec.parents, "TQ")


def _cut(f: Frame, start: Node, stop: Node) -> tuple[Node, Node]:
    splits = f.schedule.splits
    per = ceil_div(sub(stop, start), splits)
    first = least(add(start, mul(split(splits), per)), stop)
    return first, least(add(first, per), stop)


def split(splits: int) -> Node:
    """The number of this program's portion."""
    return tile.apply(Fn.TRUNCMOD, tile.program_id(1), splits)


def framed(builder: tile.Builder, spec: Selector, schedule: Schedule) -> Frame:
    """The frame of one token, whose program's second dimension counts units and splits."""
    f = frame(builder, spec, replace(schedule, rows=1))
    share, token = sharing(spec), tile.program_id(0)
    head = mul(tile.apply(Fn.TRUNCDIV, tile.program_id(1), schedule.splits), share)
    key_head = tile.apply(Fn.TRUNCDIV, head, spec.heads // spec.kv_heads)
    position = add(token, tile.param("q_offset"))
    env = {**f.env, "h": head, "i": add(position, tile.iota(f.rows)), "i_lo": position, "i_hi": position}
    return replace(f, schedule=schedule, head=head, key_head=key_head, row=add(token, tile.iota(f.rows)), env=env)


def grid(spec: Selector, splits: int) -> tuple[Node, Node, Node]:
    """One (token, unit and portion, sequence) per grid point."""
    return tile.param("TQ"), tile.const(spec.heads // sharing(spec) * splits), tile.param("B")
