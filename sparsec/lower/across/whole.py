"""A plan whose kernels leave work to one another: programs done once, and rows worked out where they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sparsec.lower.across.handed import handed, without_reader
from sparsec.lower.across.piece import Piece, lifted, names, touching
from sparsec.lower.across.same import without_repeats
from sparsec.lower.across.taken import made_by, placed, taken
from sparsec.lower.lowered import Lowered
from sparsec.plan.maps.map_specs import Map
from sparsec.plan.plan import Kernel, Plan
from sparsec.plan.states.fenwick_specs import Ladder, LadderGrad
from sparsec.plan.states.mixture_specs import StateMixture, StateMixtureGrad
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.tile.schedule import Schedule

SCANS = (Scan, ScanGrad, StateMixture, StateMixtureGrad)
"""Specs of kernels that may sort, and sum decays."""

ALIKE = (*SCANS, Ladder, LadderGrad)
"""Specs of kernels of which one may do what another has done."""


def shares(plan: Plan, schedules: Mapping[str, Schedule]) -> bool:
    """Whether a plan, not of packed documents, has a bank whose tokens are sorted by part under these schedules."""
    sorts = (_routed(k) and schedules[k.name].order == "chunk" for k in plan.kernels)
    return all(k.packed is None for k in plan.kernels) and any(sorts)


def _routed(kernel: Kernel) -> bool:
    spec = kernel.spec.forward if isinstance(kernel.spec, ScanGrad) else kernel.spec
    return isinstance(spec, Scan) and spec.writes.route is not None


def together(plan: Plan, lowered: Mapping[str, Lowered]) -> tuple[Plan, dict[str, Lowered]]:
    """The plan and its programs by kernel, with less to launch and to move; results are the same to the last bit."""
    pieces = [Piece(k, lowered[k.name]) for k in plan.kernels]
    pieces, dropped = _where_read(_once(pieces), set(plan.outputs))
    while (going := handed(pieces, set(plan.outputs))) is not None:
        pieces = without_reader(pieces, going)
        dropped.add(going.rows.name)
    found, buffers = list[Piece](), [b for b in plan.buffers if b.name not in dropped]
    for piece in pieces:
        others = {name for p in pieces if p is not piece for s in p.lowered.steps for name in names(s.program)}
        left, made = lifted(piece, piece.scratch & others)
        found.append(left if left.lowered is lowered[left.kernel.name] else touching(left))
        buffers += made
    kernels = tuple(p.kernel for p in found)
    return replace(plan, kernels=kernels, buffers=tuple(buffers)), {p.kernel.name: p.lowered for p in found}


def _once(pieces: Sequence[Piece]) -> list[Piece]:
    """Scans without steps that another scan has done."""
    changed = without_repeats([p for p in pieces if isinstance(p.kernel.spec, ALIKE)])
    new = {p.kernel.name: p for p in changed}
    return [new.get(p.kernel.name, p) for p in pieces]


def _where_read(pieces: Sequence[Piece], outputs: set[str]) -> tuple[list[Piece], set[str]]:
    """Without programs whose rows one other program works out; and the buffers that are no more."""
    found, dropped = list(pieces), set[str]()
    for name in [p.kernel.name for p in pieces]:
        for program in [s.program for p in found if p.kernel.name == name for s in p.lowered.steps]:
            place = next(n for n, p in enumerate(found) if p.kernel.name == name)
            made = made_by(program)
            targets = [] if made is None or made.tensor.name in outputs else placed(found, made)
            if made is None or not _leaves(found[place].kernel, [found[reader].kernel for reader, _ in targets]):
                continue
            for reader, number in targets:
                found[reader] = taken(found[reader], number, found[place], made)
            found[place] = _without(found[place], program.name, made.tensor.name)
            dropped.add(made.tensor.name)
            found = [p for p in found if p.lowered.steps]
            if not any(p.kernel.name == name for p in found):
                break
    return found, dropped


def _leaves(maker: Kernel, readers: Sequence[Kernel]) -> bool:
    """Whether rows that a scan puts back go to whoever reads them, or a map to the one scan that sorts it."""
    if not readers or any(reader is maker for reader in readers):
        return False
    one = len(readers) == 1 and isinstance(readers[0].spec, SCANS)
    return isinstance(maker.spec, SCANS) or (one and isinstance(maker.spec, Map))


def _without(piece: Piece, program: str, scratch: str) -> Piece:
    steps = tuple(s for s in piece.lowered.steps if s.program.name != program)
    left = tuple(s for s in piece.lowered.scratch if s.name != scratch)
    return replace(piece, lowered=replace(piece.lowered, steps=steps, scratch=left))
