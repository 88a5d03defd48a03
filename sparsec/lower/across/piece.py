"""A kernel of a plan with its programs, and what of its scratch others read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from sparsec.lower.lowered import Lowered
from sparsec.plan.plan import Buffer, Kernel
from sparsec.scalar.expr import Expr
from sparsec.scalar.walk import substitute
from sparsec.tile.language import Node, Program, Tensor, TileOp, access_of
from sparsec.tile.rewrite import accessed, accesses, rewrite


@dataclass(frozen=True, slots=True)
class Piece:
    """A kernel and its programs."""

    kernel: Kernel
    lowered: Lowered

    def params(self) -> dict[str, Expr]:
        """Its launch parameters over the dims of the declaration."""
        own = dict(self.kernel.params)
        return own | {name: substitute(value, own) for name, value in self.lowered.params}

    @property
    def scratch(self) -> set[str]:
        """The names of its scratch buffers."""
        return {s.name for s in self.lowered.scratch}


def names(program: Program) -> set[str]:
    """The tensors that a program is launched on."""
    return {t.name for t in program.tensors}


def loads(program: Program) -> set[str]:
    """Those that it loads."""
    return {a.tensor.name for n, a in accesses(program) if n.op is TileOp.LOAD}


def stores(program: Program) -> set[str]:
    """Those that it stores to."""
    return {a.tensor.name for n, a in accesses(program) if n.op is TileOp.STORE}


def touching(piece: Piece) -> Piece:
    """The piece whose kernel says what its programs read and write beside scratch, once these were changed."""
    programs, own = [step.program for step in piece.lowered.steps], piece.scratch
    made = dict.fromkeys(name for p in programs for name in sorted(stores(p)) if name not in own)
    read = dict.fromkeys(name for p in programs for name in sorted(names(p)) if name not in own and name not in made)
    return replace(piece, kernel=replace(piece.kernel, reads=tuple(read), writes=tuple(made)))


def lifted(piece: Piece, wanted: Collection[str]) -> tuple[Piece, list[Buffer]]:
    """The piece without some of its scratch, and that scratch as buffers of the plan."""
    known, own = piece.params(), piece.lowered.scratch
    found = [s for s in own if s.name in wanted]
    if not found:
        return piece, []
    left = tuple(s for s in own if s.name not in wanted)
    buffers = [Buffer(s.name, tuple(substitute(d, known) for d in s.shape), s.dtype, "temporary") for s in found]
    return replace(piece, lowered=replace(piece.lowered, scratch=left)), buffers


def renamed(program: Program, called: Mapping[str, str]) -> Program:
    """The program on tensors of other names."""
    if not called:
        return program

    def rule(node: Node, args: tuple[Node, ...]) -> Node | None:
        if node.op not in (TileOp.LOAD, TileOp.STORE) or access_of(node).tensor.name not in called:
            return None
        return accessed(node, args, _as(access_of(node).tensor, called))

    tensors = {t.name: t for t in (_as(t, called) for t in program.tensors)}
    return rewrite(program, rule, tuple(tensors.values()))


def _as(tensor: Tensor, called: Mapping[str, str]) -> Tensor:
    return replace(tensor, name=called.get(tensor.name, tensor.name))
