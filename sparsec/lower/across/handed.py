"""Rows that a program goes on with where it makes them: what reads them element by element is done at its store.

A sum of branches reads what one of them made row by row, and what a bank's parts answered where it lies. The program
that makes the first stores the sum in its place:

    … store(x[b, i, h, c], v) …     o[b, i, h, c] = f(x[b, i, h, c], sorted[b, place[b, i], h, c])
      ->  … store(o[b, i, h, c], f(v, load(sorted[b, load(place[b, i]), h, c]))) …

And what is made in the order of parts and put back is stored where it is put, by the list of which places are those:

    … store(x[b, r, h, c], v) …     o[b, i, h, c] = f(x[b, place[b, i], h, c])
      ->  … store(o[b, load(token[b, r]), h, c], f(v)) …
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sparsec.lower.across.piece import Piece, loads, stores
from sparsec.lower.across.taken import Made, Taken, called, made_by
from sparsec.lower.scan.runs import tokens_of
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor, TileOp, access_of
from sparsec.tile.rewrite import accesses, rebuilt, rewrite, stored

MOST = 2
"""Tiles of what is read, the maker's own among them, for which a program that multiplies has registers."""

Place = tuple[int, int]
"""Which step of which piece."""


@dataclass(frozen=True, slots=True)
class Handed:
    """A program that goes on with rows that another kernel makes.

    Attributes:
        maker: the kernel; each of its ``steps`` makes some of the rows.
        load: of the rows, in the reader's program; ``made`` is what the reader stores.
        places: the load of where rows lie, if they lie in another order than what is stored.
    """

    reader: Place
    maker: int
    steps: tuple[int, ...]
    load: Node
    made: Made
    places: Node | None

    @property
    def rows(self) -> Tensor:
        """The rows, as the reader calls their extents."""
        return access_of(self.load).tensor


def handed(pieces: Sequence[Piece], outputs: set[str]) -> Handed | None:
    """The first program whose work the one that makes its rows can do; None where there is none."""
    for reader, program in _steps(pieces):
        made = made_by(program)
        given = [] if made is None else [n for n in made.nodes() if n.op is TileOp.LOAD and n.axes == made.value.axes]
        if made is None or len(given) > MOST or not any(_places(made, n) for n in given):
            continue
        for load in sorted(given, key=lambda n: _places(made, n) is not None):
            if makers := _makers(pieces, reader, made, load, outputs):
                steps = tuple(step for _, step in makers)
                return Handed(reader, makers[0][0], steps, load, made, _places(made, load))
    return None


def _steps(pieces: Sequence[Piece]) -> Iterator[tuple[Place, Program]]:
    for p, piece in enumerate(pieces):
        for s, step in enumerate(piece.lowered.steps):
            yield (p, s), step.program


def _index(load: Node) -> tuple[Node, ...]:
    return load.args[: access_of(load).tensor.rank]


def _places(made: Made, load: Node) -> Node | None:
    """Where the rows of a load lie, by a list of one place per token; None if it reads no such list."""
    index = _index(load)
    if not 1 < len(index) == len(made.index) or index[1].op is not TileOp.LOAD:
        return None
    places, of = access_of(index[1]).tensor, _index(index[1])
    listed = places.name.endswith("_places") and places.shape[-1] == 1
    return index[1] if listed and _same(of[:2], made.index[:2]) else None


def _same(found: Sequence[Node], index: Sequence[Node]) -> bool:
    return len(found) == len(index) and all(a is b for a, b in zip(found, index, strict=True))


def _makers(pieces: Sequence[Piece], reader: Place, made: Made, load: Node, outputs: set[str]) -> list[Place]:
    """The steps of a kernel that make what is read element by element, if nothing else reads it and it can wait."""
    name, index = access_of(load).tensor.name, _index(load)
    if _places(made, load) is not None:
        index = (index[0], made.index[1], *index[2:])
    if name in outputs or not _same(index, made.index):
        return []
    readers, makers = ([at for at, program in _steps(pieces) if name in of(program)] for of in (loads, stores))
    if readers != [reader] or len({p for p, _ in makers}) != 1 or not _scans(pieces[makers[0][0]]):
        return []
    if not _waits(pieces, makers[-1], reader) or _lacks(pieces, makers[0], made, name):
        return []
    return makers if all(_one_store(pieces[p].lowered.steps[s].program, name) for p, s in makers) else []


def _waits(pieces: Sequence[Piece], maker: Place, reader: Place) -> bool:
    """Whether the maker's kernel may run where the reader's does: no kernel between the two reads what it makes."""
    if maker[0] == reader[0]:
        return maker[1] < reader[1]
    own = {name for step in pieces[maker[0]].lowered.steps for name in stores(step.program)}
    between = [step.program for piece in pieces[maker[0] + 1 : reader[0]] for step in piece.lowered.steps]
    alone = len(pieces[reader[0]].lowered.steps) == 1
    return alone and maker < reader and not any(own & (loads(p) | stores(p)) for p in between)


def _lacks(pieces: Sequence[Piece], maker: Place, made: Made, name: str) -> bool:
    """Whether something else that is read is made by the maker's kernel itself, then or later."""
    later = [step.program for step in pieces[maker[0]].lowered.steps[maker[1] :]]
    read = {access_of(n).tensor.name for n in made.nodes() if n.op is TileOp.LOAD} - {name}
    return any(read & stores(p) for p in later)


def _scans(piece: Piece) -> bool:
    return isinstance(piece.kernel.spec, Scan | ScanGrad)


def _one_store(program: Program, name: str) -> bool:
    return sum(n.op is TileOp.STORE and a.tensor.name == name and not a.atomic for n, a in accesses(program)) == 1


def without_reader(pieces: Sequence[Piece], found: Handed) -> list[Piece]:
    """The pieces, of which the maker does the reader's work, in the reader's place."""
    (r, step), m = found.reader, found.maker
    reader, maker = pieces[r], pieces[m]
    names, known = called(maker, reader), maker.params()
    changed = {n: _with_store(maker.lowered.steps[n].program, found, names) for n in found.steps}
    steps = [replace(s, program=changed.get(n, s.program)) for n, s in enumerate(maker.lowered.steps)]
    steps = [s for n, s in enumerate(steps) if r != m or n != step]
    used, kernel = dict(changed[found.steps[0]].params), maker.kernel
    more = tuple((names[p], e) for p, e in reader.params().items() if names[p] in used and names[p] not in known)
    kernel = replace(kernel, params=(*kernel.params, *more))
    scratch = tuple(s for s in maker.lowered.scratch if s.name != found.rows.name)
    new = Piece(kernel, replace(maker.lowered, steps=tuple(steps), scratch=scratch))
    return [new if n == r else p for n, p in enumerate(pieces) if n == r or n != m]


def _with_store(program: Program, found: Handed, names: dict[str, str]) -> Program:
    """The maker's program, which stores what the reader would have made."""
    name = found.rows.name
    rule = _Going(found, names, next(n for n, a in accesses(program) if n.op is TileOp.STORE and a.tensor.name == name))
    others = [access_of(n).tensor for n in found.made.nodes() if n.op is TileOp.LOAD and n is not found.load]
    others = [t for t in others if found.places is None or t.name != access_of(found.places).tensor.name]
    room = next(t for t in program.tensors if t.name == name).shape[1]
    listed = [] if found.places is None else [rule.tokens(room)]
    kept = [t for t in program.tensors if t.name != name]
    more = [rule.taken.tensor(t) for t in (*others, found.made.tensor)]
    tensors = {t.name: t for t in (*kept, *listed, *more)}
    used = [names[str(n.attrs[0])] for n in found.made.nodes() if n.op is TileOp.PARAM]
    used += [extent for t in more for extent in t.shape if isinstance(extent, str)]
    params = dict(program.params) | dict.fromkeys(used, "int32")
    return rewrite(program, rule, tuple(tensors.values()), tuple(params.items()))


class _Going:
    """The rule: what becomes of the store."""

    def __init__(self, found: Handed, names: dict[str, str], store: Node) -> None:
        self.found, self.taken, self.store = found, Taken(found.made, names), store
        self.known: dict[int, Node] = {}

    def tokens(self, room: int | str) -> Tensor:
        """The list of tokens in the order of the rows."""
        assert self.found.places is not None
        return tokens_of(access_of(self.found.places).tensor, str(room))

    def __call__(self, node: Node, args: tuple[Node, ...]) -> Node | None:
        """The store of what the reader makes, and where rows are numbered, loads per row; None for other nodes."""
        if node is self.store:
            return self._stored(args)
        rank = access_of(self.store).tensor.rank
        if node not in self.store.args[:rank]:
            return None
        self.known[node.serial] = rebuilt(node, args)
        index = [self.known.get(n.serial) for n in self.store.args[: min(3, rank)]]
        if node is self.store.args[1] and None not in index:
            self._ahead([n for n in index if n is not None])
        return self.known[node.serial]

    def _stored(self, args: tuple[Node, ...]) -> Node:
        made, access, rank = self.found.made, access_of(self.store), access_of(self.store).tensor.rank
        index, bounds = self._placed(list(args[:rank]), dict(zip(access.bounded, args[rank:-1], strict=True)))
        at = {x.serial: y for x, y in zip(made.index, index, strict=True)} | {self.found.load.serial: args[-1]}
        value = self.taken.value(made.value, at, self._limits(bounds))
        tile.store(self.taken.tensor(made.tensor), *index, value=value, bounds={d: bounds[d] for d in sorted(bounds)})
        return stored()

    def _ahead(self, index: list[Node]) -> None:
        """What is read per row, long before it is wanted: the store finds it."""
        access = access_of(self.store)
        limits = self.store.args[access.tensor.rank : -1]
        bounds = {d: rebuilt(n, ()) for d, n in zip(access.bounded, limits, strict=True) if not n.args}
        index, bounds = self._placed(index, bounds)
        at = {x.serial: y for x, y in zip(self.found.made.index, index, strict=False)}
        for node in self.found.made.nodes():
            if node.op is TileOp.LOAD and len(node.axes) == 1 and node is not self.found.load:
                self.taken.value(node, at, self._limits(bounds))

    def _limits(self, bounds: dict[int, Node]) -> dict[int, Node]:
        return {self.found.made.index[d].serial: limit for d, limit in bounds.items()}

    def _placed(self, index: list[Node], bounds: dict[int, Node]) -> tuple[list[Node], dict[int, Node]]:
        """Index and bounds of what is stored, of those of the rows."""
        if self.found.places is None:
            return index, bounds
        token, count = self._token(access_of(self.store).tensor.shape[1], index, bounds.get(1))
        return [index[0], token, *index[2:]], bounds | {1: count}

    def _token(self, room: int | str, index: Sequence[Node], limit: Node | None) -> tuple[Node, Node]:
        """Where a row is put, and how many such places there are."""
        made, places = self.found.made, self.found.places
        assert places is not None
        access = access_of(made.store)
        count = dict(zip(access.bounded, made.store.args[access.tensor.rank : -1], strict=True))[1]
        at = {x.serial: y for n, (x, y) in enumerate(zip(made.index, index, strict=False)) if n != 1}
        length, listed = (self.taken.value(n, at, {}) for n in (count, _index(places)[2]))
        bounds: dict[int, tile.Value] = {} if limit is None else {2: limit}
        token = tile.load(self.tokens(room), index[0], listed, index[1], bounds=bounds)
        inside = token if limit is None else tile.apply(Fn.WHERE, tile.apply(Fn.LT, index[1], limit), token, length)
        return inside, length
