"""Rows that a program goes on with where it makes them: what reads them element by element is done at its store.

A sum of branches reads what one of them made row by row, and what a bank's parts answered where it lies. The program
that makes the first stores the sum in its place:

    … store(x[b, i, h, c], v) …     o[b, i, h, c] = f(x[b, i, h, c], sorted[b, place[b, i], h, c])
      ->  … store(o[b, i, h, c], f(v, load(sorted[b, load(place[b, i]), h, c]))) …
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsec.lower.across.piece import Piece, loads, stores
from sparsec.lower.across.taken import Made, Taken, called, made_by
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, TileOp, access_of
from sparsec.tile.rewrite import accesses, rewrite, stored


@dataclass(frozen=True, slots=True)
class Handed:
    """A kernel of one program that goes on with rows that another kernel makes.

    Attributes:
        reader, maker: their places among the pieces; ``step`` of the maker makes the rows.
        load: of the rows, in the reader's program.
        made: what the reader stores.
    """

    reader: int
    maker: int
    step: int
    load: Node
    made: Made


def handed(pieces: Sequence[Piece], outputs: set[str]) -> Handed | None:
    """The first kernel whose work another one can do at its store; None where there is none."""
    for place, piece in enumerate(pieces):
        made = made_by(piece.lowered.steps[0].program) if len(piece.lowered.steps) == 1 else None
        if made is None or not _gathers(made):
            continue
        for load in (n for n in made.nodes() if n.op is TileOp.LOAD):
            found = _maker(pieces, place, made, load, outputs)
            if found is not None:
                return Handed(place, *found, load, made)
    return None


def _gathers(made: Made) -> bool:
    """Whether rows are read where they lie, by an index that is read itself."""
    return any(n.op is TileOp.LOAD and any(i.op is TileOp.LOAD for i in _index(n)) for n in made.nodes())


def _index(load: Node) -> tuple[Node, ...]:
    return load.args[: access_of(load).tensor.rank]


def _maker(
    pieces: Sequence[Piece], reader: int, made: Made, load: Node, outputs: set[str]
) -> tuple[int, int] | None:
    """The kernel and the step that make what is read element by element, if nothing else reads it and it can wait."""
    name = access_of(load).tensor.name
    same = len(_index(load)) == len(made.index) and all(a is b for a, b in zip(_index(load), made.index, strict=True))
    if not same or name in outputs or access_of(load).tensor.dtype != "float32":
        return None
    steps = [(p, s, step.program) for p, piece in enumerate(pieces) for s, step in enumerate(piece.lowered.steps)]
    readers, makers = ([(p, s) for p, s, x in steps if name in of(x)] for of in (loads, stores))
    if readers != [(reader, 0)] or len(makers) != 1 or not _waits(pieces, makers[0][0], reader):
        return None
    return makers[0] if _one_store(pieces[makers[0][0]].lowered.steps[makers[0][1]].program, name) else None


def _waits(pieces: Sequence[Piece], maker: int, reader: int) -> bool:
    """Whether no kernel between the two reads what the maker makes."""
    own = {name for step in pieces[maker].lowered.steps for name in stores(step.program)}
    between = [step.program for piece in pieces[maker + 1 : reader] for step in piece.lowered.steps]
    return maker < reader and not any(own & (loads(p) | stores(p)) for p in between)


def _one_store(program: Program, name: str) -> bool:
    return sum(n.op is TileOp.STORE and a.tensor.name == name and not a.atomic for n, a in accesses(program)) == 1


def without_reader(pieces: Sequence[Piece], found: Handed) -> list[Piece]:
    """The pieces, of which the maker does the reader's work, in the reader's place."""
    reader, maker = pieces[found.reader], pieces[found.maker]
    names, known = called(maker, reader), maker.params()
    step = maker.lowered.steps[found.step]
    program = _with_sum(step.program, found, names)
    steps = [replace(s, program=program) if n == found.step else s for n, s in enumerate(maker.lowered.steps)]
    used = dict(program.params)
    more = tuple((names[p], e) for p, e in reader.params().items() if names[p] in used and names[p] not in known)
    kernel = replace(maker.kernel, params=(*maker.kernel.params, *more), covers=(*maker.kernel.covers, *reader.kernel.covers))
    scratch = tuple(s for s in maker.lowered.scratch if s.name != access_of(found.load).tensor.name)
    new = Piece(kernel, replace(maker.lowered, steps=tuple(steps), scratch=scratch))
    return [new if n == found.reader else p for n, p in enumerate(pieces) if n != found.maker]


def _with_sum(program: Program, found: Handed, names: dict[str, str]) -> Program:
    """The maker's program, which stores what the reader would have made."""
    taken, name = Taken(found.made, names), access_of(found.load).tensor.name

    def rule(node: Node, args: tuple[Node, ...]) -> Node | None:
        if node.op is not TileOp.STORE or access_of(node).tensor.name != name:
            return None
        access, rank = access_of(node), access_of(node).tensor.rank
        index, bounds = args[:rank], dict(zip(access.bounded, args[rank:-1], strict=True))
        at = {x.serial: y for x, y in zip(found.made.index, index, strict=True)} | {found.load.serial: args[-1]}
        limits = {found.made.index[d].serial: limit for d, limit in bounds.items()}
        value = taken.value(found.made.value, at, limits)
        tile.store(taken.tensor(found.made.tensor), *index, value=value, bounds=dict(bounds))
        return stored()

    others = [access_of(n).tensor for n in found.made.nodes() if n.op is TileOp.LOAD and n is not found.load]
    kept = [t for t in program.tensors if t.name != name]
    tensors = {t.name: t for t in (*kept, *(taken.tensor(t) for t in (*others, found.made.tensor)))}
    used = [str(n.attrs[0]) for n in found.made.nodes() if n.op is TileOp.PARAM]
    used += [extent for t in (*others, found.made.tensor) for extent in t.shape if isinstance(extent, str)]
    params = dict(program.params) | {names[p]: "int32" for p in used}
    return rewrite(program, rule, tuple(tensors.values()), tuple(params.items()))
