"""Rows that one program makes for one other, element by element, worked out where they are read.

What parts of a bank answered is put back into the order of tokens by a program of its own, and read once, by a merge
or a sum. That reads the sorted rows itself:

    x[b, n, h, d] = e[b, n] · sorted[b, place[b, n], h, d]        … load(x[b, i, h, c]) …
      ->  … e[b, i] · load(sorted[b, load(place[b, i]), h, c]) …
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from sparsec.lower.across.piece import Piece
from sparsec.lower.scalars import both
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor, TileOp, access_of
from sparsec.tile.rewrite import accesses, rebuilt, rewrite

_CLOSED = (TileOp.LOAD, TileOp.MAP, TileOp.CAST, TileOp.CONST, TileOp.PARAM)
"""What the value of an element may be made of."""


@dataclass(frozen=True, slots=True)
class Made:
    """The only store of a program, whose value at an index depends on nothing but the index."""

    store: Node

    @property
    def tensor(self) -> Tensor:
        """What is stored to."""
        return access_of(self.store).tensor

    @property
    def index(self) -> tuple[Node, ...]:
        """Where."""
        return self.store.args[: self.tensor.rank]

    @property
    def value(self) -> Node:
        """What."""
        return self.store.args[-1]

    def nodes(self) -> list[Node]:
        """Everything that the value is made of down to the index."""
        found, waiting, index = dict[int, Node](), [self.value], {n.serial for n in self.index}
        while waiting:
            node = waiting.pop()
            if node.serial not in found:
                found[node.serial] = node
                waiting += [] if node.serial in index and node.op is not TileOp.CONST else node.args
        return list(found.values())


def made_by(program: Program) -> Made | None:
    """The store of a program that works element by element; None for other programs."""
    if len(program.effects) != 1 or program.effects[0].op is not TileOp.STORE:
        return None
    found = Made(program.effects[0])
    if access_of(found.store).atomic or len({n.serial for n in found.index}) < len(found.index):
        return None
    free = {n.serial for n in found.index if n.op is not TileOp.CONST}
    return found if all(n.op in _CLOSED or n.serial in free for n in found.nodes()) else None


def only_load(program: Program, made: Made) -> Node | None:
    """The load of a program that reads rows and multiplies nothing, if it reads what was made once."""
    nodes = tile.reachable(program.effects)
    if any(n.op in (TileOp.DOT, TileOp.LOOP, TileOp.TOP_INSERT) for n in nodes):
        return None
    loads = [n for n, a in accesses(program) if a.tensor.name == made.tensor.name]
    if len(loads) != 1 or loads[0].op is not TileOp.LOAD:
        return None
    pairs = zip(made.index, loads[0].args, strict=False)
    fixed = all(y.op is TileOp.CONST and x.attrs == y.attrs for x, y in pairs if x.op is TileOp.CONST)
    return loads[0] if fixed else None


def taken(reader: Piece, number: int, maker: Piece, made: Made) -> Piece:
    """The reader, of whose steps one works out what another kernel's program made."""
    step, names = reader.lowered.steps[number], called(reader, maker)
    params = {p: e for p, e in maker.params().items() if names[p] not in reader.params()}
    program = _inlined(step.program, made, names)
    steps = [replace(s, program=program) if n == number else s for n, s in enumerate(reader.lowered.steps)]
    kernel = reader.kernel
    more = tuple((names[p], e) for p, e in params.items() if names[p] in dict(program.params))
    return Piece(replace(kernel, params=(*kernel.params, *more)), replace(reader.lowered, steps=tuple(steps)))


def called(reader: Piece, maker: Piece) -> dict[str, str]:
    """How the reader calls the launch parameters of the maker: by a name of its own where it has that number."""
    known = {value: name for name, value in reversed(reader.params().items())}
    return {p: known.get(value, f"{maker.kernel.name}_{p}") for p, value in maker.params().items()}


def _inlined(program: Program, made: Made, names: Mapping[str, str]) -> Program:
    """The program with the value in place of the load."""
    rule = Taken(made, names)
    kept = [t for t in program.tensors if t.name != made.tensor.name]
    loaded = [access_of(n).tensor for n in made.nodes() if n.op is TileOp.LOAD]
    tensors = {t.name: t for t in (*kept, *(rule.tensor(t) for t in loaded))}
    used = [str(n.attrs[0]) for n in made.nodes() if n.op is TileOp.PARAM]
    used += [extent for t in loaded for extent in t.shape if isinstance(extent, str)]
    params = dict(program.params) | {names[p]: "int32" for p in used}
    return rewrite(program, rule, tuple(tensors.values()), tuple(params.items()))


class Taken:
    """The rule: what becomes of the load."""

    def __init__(self, made: Made, names: Mapping[str, str]) -> None:
        self.made, self.names = made, names

    def tensor(self, given: Tensor) -> Tensor:
        """A tensor of the maker as the reader calls its extents."""
        return replace(given, shape=tuple(self.names.get(x, x) if isinstance(x, str) else x for x in given.shape))

    def __call__(self, node: Node, args: tuple[Node, ...]) -> Node | None:
        """The value; None for other nodes."""
        if node.op is not TileOp.LOAD or access_of(node).tensor.name != self.made.tensor.name:
            return None
        access, rank = access_of(node), self.made.tensor.rank
        at = {x.serial: y for x, y in zip(self.made.index, args[:rank], strict=True) if x.op is not TileOp.CONST}
        limits = dict(zip(access.bounded, args[rank:], strict=True))
        value = self.value(self.made.value, at, {self.made.index[d].serial: limit for d, limit in limits.items()})
        if not limits or access.other is None:
            return value
        inside: Node = reduce(both, [tile.apply(Fn.LT, args[d], limit) for d, limit in limits.items()])
        return tile.apply(Fn.WHERE, inside, value, tile.const(access.other, value.dtype))

    def value(self, node: Node, at: Mapping[int, Node], limits: Mapping[int, Node]) -> Node:
        """A node of the maker in the reader's program; ``limits`` are those of the load, by the maker's indices."""
        if node.serial in at:
            return at[node.serial]
        if node.op is TileOp.PARAM:
            return tile.param(self.names[str(node.attrs[0])], node.dtype)
        args = tuple(self.value(a, at, limits) for a in node.args)
        if node.op is TileOp.LOAD:
            access, rank = access_of(node), access_of(node).tensor.rank
            known = {d: limits[x.serial] for d, x in enumerate(node.args[:rank]) if x.serial in limits}
            bounds: dict[int, tile.Value] = {**known, **dict(zip(access.bounded, args[rank:], strict=True))}
            return tile.load(self.tensor(access.tensor), *args[:rank], bounds=bounds, other=access.other)
        if node.op is TileOp.CAST:
            return tile.cast(args[0], node.dtype)
        return rebuilt(node, args)


def placed(pieces: Sequence[Piece], made: Made) -> list[tuple[int, int]]:
    """Which steps of which pieces read what was made; none where one of them does not read it row by row."""
    readers = [
        (place, number, step.program)
        for place, piece in enumerate(pieces)
        for number, step in enumerate(piece.lowered.steps)
        if any(n.op is TileOp.LOAD and a.tensor.name == made.tensor.name for n, a in accesses(step.program))
    ]
    if any(only_load(program, made) is None for _, _, program in readers):
        return []
    return [(place, number) for place, number, _ in readers]
