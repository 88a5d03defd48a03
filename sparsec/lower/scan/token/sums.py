"""What several programs hold shares of: each has some of a state's columns, one of its readers or one part of a bank.

The sum is rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Scratch, Step
from sparsec.lower.scalars import add, ceil_div, mul
from sparsec.lower.scan.cell import padded, parameters, place_of, tiles
from sparsec.lower.scan.token.visit import Place, Token, placed
from sparsec.plan.states.scan_specs import Operand, Read, Scan, ScanGrad, Writes
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule

ROWS = 16
"""Tokens of a program."""

UNROLLED = 16
"""Shares that are added up without a loop."""


_FADES: dict[str, Literal["rows", "cols"]] = {"key": "rows", "value": "cols"}
"""What a decay has a number per."""


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor ``[B,N,heads]`` or, with ``last``, ``[B,N,heads,D]``; DV, slots or levels likewise.

    Attributes:
        sharers: states that each have a share of an element.
        parts: whether every part of a bank has a share for every token, not only those that the token chose.
        slot: of a route, to whose part alone it belongs; None where all parts have a share.
    """

    operand: Operand
    heads: int
    last: Literal["", "rows", "cols", "slots", "levels"] = ""
    sharers: int = 1
    parts: bool = False
    slot: int | None = None
    levels: int = 0

    @property
    def apart(self) -> bool:
        """Whether no two parts have a share of an element."""
        return self.slot is not None or self.last == "slots"

    def size(self, w: Writes) -> tuple[int, ...]:
        """Of the last dim."""
        return {"": (), "rows": (w.rows,), "cols": (w.cols,), "slots": (w.slots,), "levels": (self.levels,)}[self.last]


@dataclass(frozen=True, slots=True)
class Found:
    """The gradients that a scan's adjoint makes of what tokens bring; None is not asked for."""

    q: tuple[Target | None, ...]
    k: Target | None
    v: Target | None
    beta: Target | None
    decay: Target | None
    erase_a: Target | None
    erase_b: Target | None
    weight: Target | None


def found(spec: ScanGrad) -> Found:
    """The gradients by what they are of."""
    w = spec.forward.writes

    def target(operand: Operand | None, last: Literal["", "rows", "cols", "slots"], sharers: int = 1) -> Target | None:
        return None if operand is None else Target(operand, w.heads // sharers, last, sharers)

    reads = [
        None if q is None else Target(q, r.heads // r.sharers, "cols" if r.turned else "rows", r.sharers, slot=r.slot)
        for q, r in zip(spec.grad_q, spec.forward.reads, strict=True)
    ]
    a, b = (target(erase, "rows") for erase in spec.grad_erase)
    fading = w.route is not None and not w.route.freeze
    decay = None
    if spec.grad_decay is not None:
        decay = Target(spec.grad_decay, w.heads, _FADES.get(w.decay_kind, ""), parts=fading)
    lists = w.route.lists if w.route is not None else 1
    return Found(
        tuple(reads), target(spec.grad_k, "rows", w.sharers), target(spec.grad_v, "cols"), target(spec.grad_beta, ""),
        decay, a, b, target(spec.grad_weight, "slots", w.heads // lists),
    )  # fmt: skip


def targets(spec: ScanGrad) -> list[Target]:
    """All of them."""
    own = found(spec)
    every = (*own.q, own.k, own.v, own.beta, own.decay, own.erase_a, own.erase_b, own.weight)
    return [t for t in every if t is not None]


def answered(read: Read) -> Target:
    """What a read makes."""
    return Target(read.out, read.heads, "rows" if read.turned else "cols", slot=read.slot)


def surprised(spec: Scan) -> Target:
    """What a delta rule writes."""
    assert spec.surprise is not None
    return Target(spec.surprise, spec.writes.heads, "cols")


def count(w: Writes, target: Target, schedule: Schedule) -> int:
    """The programs that have a share of one element."""
    several = 1 if target.apart else w.parts + 1 if target.parts else w.slots
    return (1 if target.last == "cols" else tiles(w, schedule)) * target.sharers * several


def shares(w: Writes, target: Target, schedule: Schedule) -> Tensor:
    """fp32 ``[count,B,N,heads,…]``."""
    shape: tuple[str | int, ...] = (count(w, target, schedule), "B", w.length, target.heads, *target.size(w))
    return Tensor(f"{target.operand.name}_shares", "float32", shape)


def sums(name: str, w: Writes, found: Sequence[Target], schedule: Schedule) -> tuple[list[Step], list[Scratch]]:
    """The programs that add up, and their scratch."""
    several = [t for t in found if count(w, t, schedule) > 1]
    steps = [Step(program(name, w, t, shares(w, t, schedule), schedule), schedule) for t in several]
    return steps, [as_scratch(shares(w, t, schedule)) for t in several]


def put(now: Token, target: Target, head: Node, value: Node, schedule: Schedule, level: int | None = None) -> None:
    """Store what a token makes for ``head`` of the state or of what is read, or this program's share of it."""
    own = now.cell
    w, several = own.writes, count(own.writes, target, schedule)
    at_head = tile.apply(Fn.TRUNCDIV, head, target.sharers)
    first = tile.apply(Fn.TRUNCMOD, head, target.sharers)
    if target.last != "cols":
        first = add(mul(own.share, target.sharers), first)
    places: tuple[Place, ...] = (Place(now.at, own.part, now.bounded),) if target.parts else now.visit.places
    for place in places if target.slot is None else [placed(own, p, target.slot) for p in places]:
        rows, cols = target.last == "rows", target.last == "cols"
        made, index, limits = place_of(own, target.operand, target.heads, rows, cols, place.limited)
        if target.last == "slots":
            made, index = Tensor(made.name, made.dtype, (*made.shape, w.slots)), (place.slot,)
        if level is not None:
            made, index = Tensor(made.name, made.dtype, (*made.shape, target.levels)), (tile.const(level),)
        if several == 1:
            value = tile.cast(value, made.dtype)
            tile.store(own.tensor(made), own.batch, place.at, at_head, *index, value=value, bounds=limits)
            continue
        number = first
        if not target.apart:
            number = add(mul(first, w.parts + 1 if target.parts else w.slots), place.slot)
        tensor, ahead = own.tensor(shares(w, target, schedule)), {dim + 1: limit for dim, limit in limits.items()}
        tile.store(tensor, number, own.batch, place.at, at_head, *index, value=value, bounds=ahead)


def program(title: str, w: Writes, target: Target, made: Tensor, schedule: Schedule) -> Program:
    """The sum of shares ``made``: one (tile of tokens, head, batch) per grid point."""
    with tile.Builder() as builder:
        out = Tensor(target.operand.name, target.operand.dtype, made.shape[1:])
        tokens = builder.axis("m", ROWS)
        limits: dict[int, tile.Value] = {1: tile.param(w.length)}
        at = add(mul(tile.program_id(0), ROWS), tile.iota(tokens))
        place: tuple[Node, ...] = (tile.program_id(2), at, tile.program_id(1))
        for last in target.size(w):
            size = padded(last) if schedule.split_dims else last
            place = (*place, tile.iota(builder.axis("d", size)))
            limits |= {3: last} if size != last else {}
        total = _total(made, place, limits)
        tile.store(out, *place, value=tile.cast(total, out.dtype), bounds=limits)
        grid = (ceil_div(tile.param(w.length), ROWS), tile.const(target.heads), tile.param("B"))
        return builder.program(f"{title}_{target.operand.name}", [made, out], parameters(w), grid)


def _total(made: Tensor, place: Sequence[Node], limits: dict[int, tile.Value]) -> Node:
    ahead = {dim + 1: limit for dim, limit in limits.items()}
    count = int(made.shape[0])
    total = tile.load(made, 0, *place, bounds=dict(ahead))
    if count > UNROLLED:
        return tile.loop(1, count, 1, [total], lambda n, x: [add(x, tile.load(made, n, *place, bounds=dict(ahead)))])[0]
    for n in range(1, count):
        total = add(total, tile.load(made, n, *place, bounds=dict(ahead)))
    return total
