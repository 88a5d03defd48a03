"""What one token brings to a state: where it lies, how it comes to a part of a bank, and what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from sparsec.lower.scalars import add, both, most, mul
from sparsec.lower.scan.cell import Cell, vector
from sparsec.plan.states.scan_specs import Operand, Route
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor

LEAST = -200.0
"""A log-decay whose exponential is 0 in fp32; the functions of back ends need not know −inf."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where what a token gives to a part lies among what it gives to all its parts.

    Attributes:
        at: the token's number; its sequence's length where ``limited`` and the part is not in this slot.
    """

    at: Node
    slot: Node
    limited: bool


def placed(own: Cell, place: Place, slot: int) -> Place:
    """A place where it is that of a slot; else nowhere."""
    at = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, place.slot, slot), place.at, tile.param(own.writes.length))
    return Place(at, place.slot, True)


@dataclass(frozen=True, slots=True)
class Visit:
    """One step of a program's walk.

    Attributes:
        at: the token's number; one past the last brings zeros and leaves the state as it is, if ``bounded``.
        live: 1 where the token chose the part, else 0; None for always.
        share: e, 0 where the token did not choose the part; None for 1.
        chose: whether it did, where the walk meets tokens that did not.
        places: one per slot that may hold the part; ``slot`` is the one that does, 0 where none does.
    """

    at: Node
    bounded: bool
    live: Node | None
    share: Node | None
    chose: Node | None
    places: tuple[Place, ...]
    slot: Node


def steps(own: Cell) -> Node:
    """The steps of a program's walk."""
    if own.runs is None:
        return tile.param(own.writes.length)
    return tile.load(own.tensor(own.runs.spans), own.batch, listed(own), own.part, 1)


def listed(own: Cell) -> Node:
    """The list of the state's head."""
    route = own.writes.route
    return own.head if route is not None and route.lists > 1 else tile.const(0)


def visit(own: Cell, number: Node, bounded: bool = False) -> Visit:
    """A step by its number; ``bounded`` where it may be past the last."""
    route = own.writes.route
    if route is None:
        return Visit(number, bounded, None, None, None, (Place(number, tile.const(0), bounded),), tile.const(0))
    return _met(own, route, number, bounded) if own.runs is None else _listed(own, route, number, bounded)


def _listed(own: Cell, route: Route, number: Node, bounded: bool) -> Visit:
    """A step of a run."""
    assert own.runs is not None
    first = tile.load(own.tensor(own.runs.spans), own.batch, listed(own), own.part, 0)
    limit: dict[int, tile.Value] = {2: tile.param(str(own.runs.entries.shape[2]))} if bounded else {}
    entry = tile.load(own.tensor(own.runs.entries), own.batch, listed(own), add(first, number), bounds=limit)
    at, slot = tile.apply(Fn.TRUNCDIV, entry, route.slots), tile.apply(Fn.TRUNCMOD, entry, route.slots)
    if bounded:
        there = tile.apply(Fn.LT, number, steps(own))
        at = tile.apply(Fn.WHERE, there, at, tile.param(own.writes.length))
        slot = tile.apply(Fn.WHERE, there, slot, 0)
    live = tile.apply(Fn.WHERE, tile.apply(Fn.LT, own.part, route.parts), tile.const(1.0), 0.0)
    share = None if route.weight is None else mul(live, weight_of(own, route, route.weight, at, slot, bounded))
    return Visit(at, bounded, live, share or live, None, (Place(at, slot, bounded),), slot)


def weight_of(own: Cell, route: Route, weight: Operand, at: Node, slot: Node | int, bounded: bool) -> Node:
    """e of a token's slot."""
    limits: dict[int, tile.Value] = {1: tile.param(own.writes.length)} if bounded else {}
    tensor = Tensor(weight.name, weight.dtype, ("B", own.writes.length, route.lists, route.slots))
    return tile.cast(tile.load(own.tensor(tensor), own.batch, at, listed(own), slot, bounds=limits), "float32")


def _met(own: Cell, route: Route, at: Node, bounded: bool) -> Visit:
    """A token, whether or not it chose the part."""
    length = tile.param(own.writes.length)
    limits: dict[int, tile.Value] = {1: length} if bounded else {}
    ids = Tensor(route.ids, "int32", ("B", own.writes.length, route.lists, route.slots))
    real = tile.apply(Fn.LT, own.part, route.parts)
    places, lives, shares = list[Place](), list[Node](), list[Node]()
    held: Node = tile.const(0)
    for slot in range(route.slots):
        chosen = tile.load(own.tensor(ids), own.batch, at, listed(own), slot, bounds=dict(limits), other=-1)
        run = tile.apply(Fn.WHERE, tile.apply(Fn.LT, chosen, 0), route.parts, chosen)
        here = tile.apply(Fn.EQ, run, own.part)
        places.append(Place(tile.apply(Fn.WHERE, here, at, length), tile.const(slot), True))
        held = tile.apply(Fn.WHERE, here, slot, held) if slot else held
        lives.append(tile.apply(Fn.WHERE, both(here, real), tile.const(1.0), 0.0))
        if route.weight is not None:
            shares.append(mul(lives[-1], weight_of(own, route, route.weight, at, slot, bounded)))
    live = reduce(add, lives)
    chose = tile.apply(Fn.LT, 0.0, live)
    return Visit(at, bounded, live, reduce(add, shares) if shares else live, chose, tuple(places), held)


@dataclass(frozen=True, slots=True)
class Token:
    """What one token brings to a state, in fp32.

    Attributes:
        fade: exp of its log-decay, a scalar, [d] or [e]; None for 1.
        k, v, p: [d], [e], and beta k [d], times e.
        beta: None for 1.
        erase: a and e b [d], or None; ``b`` is b without e where it is given.
    """

    cell: Cell
    visit: Visit
    fade: Node | None
    k: Node
    v: Node
    p: Node
    beta: Node | None
    erase: tuple[Node, Node] | None
    b: Node | None = None

    @property
    def at(self) -> Node:
        """The token's number."""
        return self.visit.at

    @property
    def bounded(self) -> bool:
        """Whether it may be past the last."""
        return self.visit.bounded

    @property
    def rate(self) -> Node | None:
        """e beta; None for 1."""
        return _times(self.visit.share, self.beta)

    def faded(self, state: Node) -> Node:
        """The state after the token's decay."""
        return state if self.fade is None else mul(self.fade, state)

    def answer(self, old: Node, faded: Node) -> Node | None:
        """aᵀR [e], what the erase term reads; None without one."""
        if self.erase is None:
            return None
        read = old if self.cell.writes.reads == "undecayed" else faded
        return tile.reduce("sum", mul(self.erase[0], read), self.cell.rows)

    def written(self, faded: Node, answer: Node | None) -> Node:
        """The state after the token's write."""
        if answer is None or self.erase is None:
            return add(faded, mul(self.p, self.v))
        if self.erase[1] is self.p:
            return add(faded, mul(self.p, add(self.v, answer)))
        return add(add(faded, mul(self.erase[1], answer)), mul(self.p, self.v))

    def after(self, old: Node) -> Node:
        """The state after the token."""
        faded = self.faded(old)
        return self.written(faded, self.answer(old, faded))


def token(own: Cell, number: Node, bounded: bool = False) -> Token:
    """What the token of a step brings."""
    return token_of(own, visit(own, number, bounded))


def token_of(own: Cell, met: Visit) -> Token:
    """What a token brings to a state that meets it."""
    w, bounded = own.writes, met.bounded

    def read(operand: Operand, rows: bool, cols: bool = False) -> Node:
        return vector(own, operand, w.heads, met.at, own.head, rows, cols, bounded)

    k = vector(own, w.k, w.key_heads or w.heads, met.at, own.key_head, True, False, bounded)
    v = read(w.v, False, True)
    beta = None if w.beta is None else read(w.beta, False)
    fade = None
    if w.decay is not None:
        log = most(read(w.decay, w.decay_kind == "key", w.decay_kind == "value"), LEAST)
        still = met.chose is not None and w.route is not None and w.route.freeze
        fade = tile.apply(Fn.EXP, tile.apply(Fn.WHERE, met.chose, log, 0.0) if still and met.chose else log)
    rate = _times(met.share, beta)
    p = k if rate is None else mul(rate, k)
    erase: tuple[Node, Node] | None = None
    b = None
    if w.erase is not None:
        b = read(w.erase[1], True)
        erase = read(w.erase[0], True), b if met.share is None else mul(met.share, b)
    elif w.rule == "delta":
        erase = tile.apply(Fn.NEG, k), p
    return Token(own, met, fade, k, v, p, beta, erase, b)


def _times(*factors: Node | None) -> Node | None:
    found: Sequence[Node] = [f for f in factors if f is not None]
    return reduce(mul, found) if found else None
