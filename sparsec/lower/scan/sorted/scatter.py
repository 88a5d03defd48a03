"""Sorted results put back: every token's rows read from where its parts are, and added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from sparsec.lower.scalars import add, ceil_div, mul
from sparsec.lower.scan.runs import CUT, ROOM, SEGMENTS, Runs
from sparsec.lower.scan.sorted.gather import last
from sparsec.lower.scan.sorted.spec import Moved, divides
from sparsec.plan.states.scan_specs import Operand, Writes
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule

TOKENS = 32
"""Tokens of a program."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tile of tokens and one head of a state or of what reads it."""

    runs: Runs
    w: Writes
    axis: Axis
    heads: int

    @property
    def batch(self) -> Node:
        """The batch entry."""
        return tile.program_id(2)

    @property
    def head(self) -> Node:
        """The head."""
        return tile.program_id(0)

    @property
    def listed(self) -> Node:
        """The list of its state."""
        return self.runs.listed(tile.apply(Fn.TRUNCDIV, self.head, self.heads // self.w.heads))

    @property
    def at(self) -> Node:
        """Token numbers [m]."""
        return add(mul(tile.program_id(1), TOKENS), tile.iota(self.axis))

    @property
    def limit(self) -> dict[int, tile.Value]:
        """The bound of token numbers."""
        return {1: tile.param(self.runs.length)}

    def place(self, slot: int) -> Node:
        """Where what a slot chose lies."""
        return tile.load(self.runs.places, self.batch, self.at, self.listed, slot, bounds=self.limit)

    def weight(self, slot: int) -> Node | None:
        """e [m] in fp32; None for 1."""
        found = weight(self.runs)
        if found is None:
            return None
        read = tile.load(found, self.batch, self.at, self.listed, slot, bounds=self.limit)
        return tile.cast(read, "float32")

    def over_weight(self, x: Node, slot: int) -> Node:
        """x over e [m]; 0 where that is 0."""
        e = self.weight(slot)
        if e is None:
            return x
        some = tile.apply(Fn.LT, 0.0, e)
        return tile.apply(Fn.WHERE, some, tile.apply(Fn.DIV, x, tile.apply(Fn.WHERE, some, e, 1.0)), 0.0)

    def read(self, tensor: Tensor, slot: int, index: tuple[Node, ...], limits: dict[int, tile.Value]) -> Node:
        """A sorted tensor's rows [m] or [m,d] in fp32."""
        found = tile.load(tensor, self.batch, self.place(slot), self.head, *index, bounds=dict(limits))
        return tile.cast(found, "float32")

    def program(self, builder: tile.Builder, name: str, tensors: Sequence[Tensor]) -> Program:
        """The finished program of one (head, tile of tokens, batch) per grid point."""
        own = weight(self.runs)
        used = {t.name: t for t in [*tensors, self.runs.places, *([own] if own is not None else [])]}
        names = dict.fromkeys(["B", "TQ", "TK", "q_offset", self.runs.length, ROOM, SEGMENTS, CUT])
        grid = (tile.const(self.heads), ceil_div(tile.param(self.runs.length), TOKENS), tile.param("B"))
        return builder.program(name, list(used.values()), [(n, "int32") for n in names], grid)


def weight(runs: Runs) -> Tensor | None:
    """e."""
    route = runs.route
    if route.weight is None:
        return None
    return Tensor(route.weight.name, route.weight.dtype, ("B", runs.length, route.lists, route.slots))


def lower(runs: Runs, w: Writes, moved: Moved, schedule: Schedule) -> Program:
    """given = Σ over slots of e times sorted, or of sorted; or what one slot has."""
    with tile.Builder() as builder:
        at, (given, held) = Tokens(runs, w, builder.axis("m", TOKENS), moved.heads), moved.tensors(w)
        index, limits = last(builder, moved, schedule)
        found = list[Node]()
        for slot in range(w.slots) if moved.slot is None else [moved.slot]:
            value, e = at.read(held, slot, index, limits), at.weight(slot) if moved.weighed else None
            found.append(value if e is None else mul(e, value))
        value = tile.cast(reduce(add, found), given.dtype)
        tile.store(given, at.batch, at.at, at.head, *index, value=value, bounds={**at.limit, **limits})
        return at.program(builder, f"{runs.name}_put_{moved.given.name}", [given, held])


def shares(runs: Runs, name: str, w: Writes, count: int) -> Tensor:
    """What each head, and each of several sources, adds to the gradient of e: fp32 ``[count·HKV,B,N,lists,slots]``."""
    route = runs.route
    heads = w.heads // route.lists
    return Tensor(f"{name}_shares", "float32", (count * heads, "B", w.length, route.lists, route.slots))


def lower_products(
    runs: Runs, w: Writes, pair: tuple[Moved, Tensor], number: int, count: int, out: str, schedule: Schedule
) -> Program:
    """The share of e through vectors that it multiplies: Σ_d x_d · d(e x)_d per slot, x as it is given.

    Where the gradient is that of x itself the product is divided by e.
    Heads that read one state are added up: one (state head, tile of tokens, batch) per grid point.
    """
    moved, held = pair
    with tile.Builder() as builder:
        at = Tokens(runs, w, builder.axis("m", TOKENS), w.heads)
        given, (index, limits) = moved.tensors(w)[0], last(builder, moved, schedule)
        group, made = moved.heads // w.heads, shares(runs, out, w, count)
        for slot in range(w.slots):
            total = list[Node]()
            for n in range(group):
                head = add(mul(at.head, group), n)
                x = tile.load(given, at.batch, at.at, head, *index, bounds={**at.limit, **limits})
                slope = tile.load(held, at.batch, at.place(slot), head, *index, bounds=dict(limits))
                product = mul(tile.cast(x, "float32"), tile.cast(slope, "float32"))
                total.append(tile.reduce("sum", product, index[0].axes[0]))
            share = reduce(add, total)
            _put(at, made, number, slot, at.over_weight(share, slot) if moved.weighed else share)
        return at.program(builder, f"{runs.name}_share{number}_{out}", [given, held, made])


def lower_rates(
    runs: Runs, w: Writes, held: Sequence[Tensor], beta: Operand | None, out: tuple[str, int] | None, schedule: Schedule
) -> Program:
    """From the gradient of e·beta that of beta, and the share of e; a second sorted tensor adds to that, or over e."""
    with tile.Builder() as builder:
        at = Tokens(runs, w, builder.axis("m", TOKENS), w.heads)
        slopes, *others = [[at.read(x, slot, (), {}) for slot in range(w.slots)] for x in held]
        tensors = [*held]
        rate: Node | None = None
        if w.beta is not None and out is not None:
            read = Tensor(w.beta.name, w.beta.dtype, ("B", w.length, w.heads))
            rate = tile.cast(tile.load(read, at.batch, at.at, at.head, bounds=at.limit), "float32")
            tensors.append(read)
        if out is not None:
            made = shares(runs, out[0], w, out[1])
            for slot, slope in enumerate(slopes):
                share = slope if rate is None else mul(rate, slope)
                more = [at.over_weight(x[slot], slot) if divides(w) else x[slot] for x in others]
                _put(at, made, 0, slot, reduce(add, [share, *more]))
            tensors.append(made)
        if beta is not None:
            weights = [at.weight(slot) for slot in range(w.slots)]
            found = [x if e is None else mul(e, x) for e, x in zip(weights, slopes, strict=True)]
            target = Tensor(beta.name, beta.dtype, ("B", w.length, w.heads))
            value = tile.cast(reduce(add, found), beta.dtype)
            tile.store(target, at.batch, at.at, at.head, value=value, bounds=at.limit)
            tensors.append(target)
        return at.program(builder, f"{runs.name}_rates", tensors)


def _put(at: Tokens, made: Tensor, number: int, slot: int, value: Node) -> None:
    route, several = at.runs.route, at.runs.route.lists > 1
    heads = at.w.heads // route.lists
    first = tile.const(number) if several else add(at.head, number * heads)
    tile.store(made, first, at.batch, at.at, at.listed, slot, value=value, bounds={2: tile.param(at.runs.length)})
