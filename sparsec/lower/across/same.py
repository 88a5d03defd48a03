"""Programs that kernels of one plan have in common: who chose which part, and rows that are sorted alike.

Steps are numbered by their values. A step that reads what another read and does with it what that one did makes what
that one made: it is left out, and what it would have made is read from there.
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
        for given in piece.lowered.steps:
            step = replace(given, program=renamed(given.program, _within(given, alias)))
            made = _made(piece, step)
            if made is not None:
                earlier = seen.setdefault(_key(step, made, known), made)
                if earlier is not made:
                    alias |= dict(zip(made, earlier, strict=True))
                    continue
            steps.append(step)
            for other in step.also:
                part = replace(other, program=renamed(other.program, _within(other, alias)))
                own = _stored(part)
                seen.setdefault(_key(part, own, known), own)
        scratch = tuple(s for s in piece.lowered.scratch if s.name not in alias)
        lowered = replace(piece.lowered, steps=tuple(steps), scratch=scratch) if alias else piece.lowered
        found.append(replace(piece, lowered=lowered))
    return found


def _within(step: Step, alias: dict[str, str]) -> dict[str, str]:
    return {t.name: alias[t.name] for t in step.program.tensors if t.name in alias}


def _made(piece: Piece, step: Step) -> list[str] | None:
    """The scratch that a step makes, in the order of its tensors; None where it makes or changes something else."""
    own, others = stores(step.program), [s for s in piece.lowered.steps if s.program.name != step.program.name]
    if not own <= piece.scratch or own & loads(step.program) or any(own & stores(s.program) for s in others):
        return None
    return _stored(step)


def _stored(step: Step) -> list[str]:
    """What a step stores to, in the order of its tensors."""
    own = stores(step.program)
    return [t.name for t in step.program.tensors if t.name in own]


def _key(step: Step, made: Sequence[str], known: dict[str, Expr]) -> Key:
    """What a step does, whatever it and its results are called."""
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
    names = ("order", "rows", "block", "value_block", "phases", "splits", "maximum", "keep")
    return replace(schedule, **{name: getattr(plain, name) for name in names})
