"""Programs that kernels of one plan have in common: who chose which part, and rows that are sorted alike.

Steps are numbered by their values. A step that reads what another read and does with it what that one did makes what
that one made: it is left out, and what it would have made is read from there. Steps that store shares of one tensor
count as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sparsec.lower.across.piece import Piece, loads, renamed, stores
from sparsec.lower.called import with_params
from sparsec.lower.lowered import Step
from sparsec.scalar.expr import Expr
from sparsec.tile import build as tile
from sparsec.tile.language import Program, TileOp
from sparsec.tile.printer import to_text
from sparsec.tile.schedule import Schedule

Key = tuple[object, ...]


def without_repeats(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces, in launch order, without steps that an earlier one has done: they name its scratch."""
    seen: dict[Key, list[str]] = {}
    found = list[Piece]()
    for piece in pieces:
        alias: dict[str, str] = {}
        steps = list[Step]()
        known = piece.params()
        for given in _units(piece):
            unit = [replace(s, program=renamed(s.program, _within(s, alias))) for s in given]
            made = _made(piece, unit)
            if made is not None:
                earlier = seen.setdefault(_key(unit, made, known), made)
                if earlier is not made:
                    alias |= dict(zip(made, earlier, strict=True))
                    continue
            steps += unit
            for other in [other for step in unit for other in step.also]:
                part = replace(other, program=renamed(other.program, _within(other, alias)))
                own = _stored([part])
                seen.setdefault(_key([part], own, known), own)
        scratch = tuple(s for s in piece.lowered.scratch if s.name not in alias)
        lowered = replace(piece.lowered, steps=tuple(steps), scratch=scratch) if alias else piece.lowered
        found.append(replace(piece, lowered=lowered))
    return found


def _within(step: Step, alias: dict[str, str]) -> dict[str, str]:
    return {t.name: alias[t.name] for t in step.program.tensors if t.name in alias}


def _units(piece: Piece) -> list[Sequence[Step]]:
    """Steps one by one, but as one those that make something together: each stores a share of it."""
    steps, found, first = piece.lowered.steps, list[Sequence[Step]](), 0
    last = {name: n for n, step in enumerate(steps) for name in stores(step.program)}
    while first < len(steps):
        end = number = first
        while number <= end:
            end = max([end, *(last[name] for name in stores(steps[number].program))])
            number += 1
        unit = steps[first : end + 1]
        found += [unit] if _made(piece, unit) is not None else [[step] for step in unit]
        first = end + 1
    return found


def _made(piece: Piece, unit: Sequence[Step]) -> list[str] | None:
    """The scratch that steps make, in the order of their tensors; None where they make or change something else."""
    own, missing = [s.program.name for s in unit], set(_stored(unit))
    others = [s for s in piece.lowered.steps if s.program.name not in own]
    if not missing <= piece.scratch or missing & set(_stored(others)):
        return None
    for number, step in enumerate(unit):
        if missing & loads(step.program):  # before all of it is there
            return None
        missing -= stores(step.program) - set(_stored(unit[number + 1 :]))
    return _stored(unit)


def _stored(unit: Sequence[Step]) -> list[str]:
    """What steps store to, in the order of their tensors."""
    names = (t.name for s in unit for own in [stores(s.program)] for t in s.program.tensors if t.name in own)
    return list(dict.fromkeys(names))


def _key(unit: Sequence[Step], made: Sequence[str], known: dict[str, Expr]) -> Key:
    """What steps do, whatever they and their results are called."""
    return tuple(_said(step, made, known) for step in unit)


def _said(step: Step, made: Sequence[str], known: dict[str, Expr]) -> Key:
    alike = renamed(step.program, {name: f"made_{n}" for n, name in enumerate(made)})
    tensors = tuple(sorted(alike.tensors, key=lambda t: t.name))
    used = sorted(_used(alike), key=lambda name: (str(known.get(name, name)), name))
    alike = replace(alike, name="step", tensors=tensors, params=tuple((name, "int32") for name in used))
    text = to_text(with_params(alike, {name: f"size_{n}" for n, name in enumerate(used)}))
    sizes = tuple(known.get(name) for name in used)
    return text, sizes, _printed(step.schedule), step.flat, step.chain


def _used(program: Program) -> set[str]:
    """The launch parameters that a program reads, and those that its grid and its tensors' extents are made of."""
    read = {str(n.attrs[0]) for n in tile.reachable([*program.effects, *program.grid]) if n.op is TileOp.PARAM}
    return read | {size for t in program.tensors for size in t.shape if isinstance(size, str)}


def _printed(schedule: Schedule) -> Schedule:
    """What of a schedule still says something once there is a program."""
    plain = Schedule()
    names = ("order", "rows", "block", "value_block", "phases", "splits", "maximum", "keep", "documents", "exact")
    return replace(schedule, **{name: getattr(plain, name) for name in names})
